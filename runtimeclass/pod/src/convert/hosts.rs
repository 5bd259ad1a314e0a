//! The Pod's `/etc/hosts`.

use std::fmt::Write as _;

use super::input::Source;

/// The text of the Pod's `/etc/hosts`, with its own name and its `hostAliases`, as the kubelet writes it.
///
/// `node_hosts` is the node's file, which a Pod on the node's network keeps.
pub(crate) fn hosts_file(source: Source<'_>, pod_ips: &[String], node_hosts: &str) -> String {
    let mut text = String::from("# Written by bulkhead play.\n");
    if source.pod.host_network {
        text.push_str(node_hosts);
        if !node_hosts.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        text.push_str("fe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
        for ip in pod_ips {
            line(&mut text, ip, source.pod.hostname());
        }
    }
    for alias in &source.pod.host_aliases {
        line(&mut text, &alias.ip, &alias.hostnames.join(" "));
    }
    text
}

fn line(text: &mut String, ip: &str, names: &str) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(text, "{ip}\t{names}");
}

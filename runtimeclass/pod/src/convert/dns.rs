//! The Pod's resolver configuration.

use k8s_cri::v1::DnsConfig;
use kube_manifest::Dns;

/// The Pod's DNS; `None` where the runtime's copy of the node's `/etc/resolv.conf` suffices.
///
/// There is no cluster, so `ClusterFirst` falls back to the node's servers, as the kubelet does without `clusterDNS`.
pub(super) fn dns(dns: &Dns, resolv_conf: &str) -> Option<DnsConfig> {
    if *dns == Dns::default() {
        return None;
    }
    let mut config = if dns.only_config { DnsConfig::default() } else { node(resolv_conf) };
    extend(&mut config.servers, &dns.servers);
    extend(&mut config.searches, &dns.searches);
    for option in &dns.options {
        let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
        config.options.retain(|old| name(old) != name(option));
        config.options.push(option.clone());
    }
    Some(config)
}

fn extend(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn node(resolv_conf: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            Some("search" | "domain") => config.searches = words.collect(),
            Some("options") => config.options = words.collect(),
            Some(_) | None => {}
        }
    }
    config
}

//! What a network plugin enforces on the host's veth holds for every kind of Pod; and port-forward
//! reaches the Pod's loopback.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::case::{Case, cases};
use super::network::{SERVE, answers, get};
use crate::bed::handler::Handler;
use crate::bed::process::until;
use crate::client::forward::Forward;
use crate::client::netns::{self, Policy, Way};
use crate::client::pod::{Container, Pod, security, shell};
use crate::client::stage::{Stage, skip};

pub(super) const CASES: &[Case] = cases![
    policy_denies_and_allows,
    spoofed_source_is_dropped,
    port_forward,
    port_forward_to_a_closed_port,
];

/// Whether the container gets the page of the Pod at `ip`.
fn fetches(client: &Container<'_>, ip: &str) -> bool {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {ip} 80 | tail -n 1");
    client.out(&script).is_ok_and(|page| page == "hello")
}

fn policy_denies_and_allows(stage: &Stage) -> Result<()> {
    let server = Pod::run(stage)?;
    let client = Pod::run(stage)?;
    let _web = server.shell(SERVE)?;
    let inside = client.shell("sleep 1000")?;
    let ip = server.ip()?;
    let from = client.ip()?;
    let address = format!("{ip}:80");
    let host_gets = || address.parse().is_ok_and(|address| get(address).is_ok());
    answers(&address)?;
    until("a page without a policy", Duration::from_secs(15), || {
        Ok(fetches(&inside, &ip).then_some(()))
    })?;

    let policy = Policy::new(stage, &netns::host_end(&netns::path(stage, &server)?)?)?;
    policy.set(Way::In, &["meta protocol ip drop"])?;
    ensure!(!host_gets(), "default-deny: the host is answered");
    ensure!(!fetches(&inside, &ip), "default-deny: another Pod is answered");

    let allow = format!("ip saddr {from} tcp dport 80 accept");
    policy.set(Way::In, &[&allow, "meta protocol ip drop"])?;
    ensure!(fetches(&inside, &ip), "the Pod that is allowed is not answered");
    ensure!(!host_gets(), "allow-from: the host is answered too");

    let outward = Policy::new(stage, &netns::host_end(&netns::path(stage, &client)?)?)?;
    outward.set(Way::Out, &[&format!("ip daddr {ip} drop")])?;
    ensure!(!fetches(&inside, &ip), "deny-egress: the Pod is answered");
    Ok(())
}

/// A Pod that may change its own address still cannot speak under another where the plugin
/// forbids it.
fn spoofed_source_is_dropped(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = shell("sleep 1000");
    let capabilities = security(&mut config).capabilities.get_or_insert_default();
    capabilities.add_capabilities = vec!["NET_ADMIN".to_owned(), "NET_RAW".to_owned()];
    let container = pod.start("main", config)?;
    let ip = pod.ip()?;
    let net = ip.rsplit_once('.').context("no IPv4 address")?.0;
    let gateway = format!("{net}.1");
    let other = format!("{net}.253");
    let ping = |source: &str| {
        let ping = container.exec(&format!("ping -c 2 -W 2 -I {source} {gateway}"))?;
        anyhow::Ok(ping.exit_code == 0)
    };
    if !ping(&ip)? {
        let runs = matches!(stage.handler, Handler::Runc) || stage.handler.is_vm();
        ensure!(!runs, "the gateway is not reached from {ip}");
        return skip("this sandbox sends no raw packets");
    }
    let added = container.exec(&format!("ip addr add {other}/24 dev eth0"))?;
    if stage.handler.is_vm() {
        // The backend drops such packets, whatever the plugin does.
        ensure!(added.exit_code == 0, "its own kernel refuses it an address: {added:?}");
        ensure!(!ping(&other)?, "a packet from {other} left the Pod {ip}");
        ensure!(ping(&ip)?, "packets from {ip} are dropped too");
        return Ok(());
    }
    if added.exit_code != 0 || !ping(&other)? {
        container.exec(&format!("ip addr del {other}/24 dev eth0"))?;
        return skip("this sandbox does not let a Pod speak under another address at all");
    }
    let policy = Policy::new(stage, &netns::host_end(&netns::path(stage, &pod)?)?)?;
    policy.set(Way::Out, &[&format!("meta protocol ip ip saddr != {ip} drop")])?;
    let spoofed = ping(&other)?;
    let own = ping(&ip)?;
    // The bridge plugin removes a rule for each address that it finds, and fails for a foreign one.
    container.out(&format!("ip addr del {other}/24 dev eth0"))?;
    ensure!(!spoofed, "a packet from {other} left the Pod {ip}");
    ensure!(own, "packets from {ip} are dropped too");
    Ok(())
}

/// The server listens on the loopback alone, as many do that are meant to be forwarded to. Debian's
/// runsc must not be asked for such a one: it panics.
fn port_forward(stage: &Stage) -> Result<()> {
    const SIZE: usize = 3 << 20;
    let pod = Pod::run(stage)?;
    let host = if stage.handler == Handler::Gvisor { "0.0.0.0" } else { "127.0.0.1" };
    let script = format!(
        "mkdir /www; echo hello > /www/index.html; head -c {SIZE} /dev/zero | tr '\\0' x > /www/big; \
         exec httpd -f -p {host}:8080 -h /www"
    );
    let server = pod.shell(&script)?;
    until("the server", Duration::from_secs(20), || {
        Ok(server.out("wget -q -O - http://127.0.0.1:8080/").ok())
    })?;
    let ask = |path: &str| -> Result<Vec<u8>> {
        let mut forward = Forward::open(stage, &pod.id, 8080)?;
        forward.send(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let all = forward.read_to_end()?;
        ensure!(forward.error.is_empty(), "{path}: {}", forward.error);
        let body = all.windows(4).position(|end| end == b"\r\n\r\n");
        Ok(all[body.with_context(|| format!("{path}: no answer: {all:?}"))? + 4..].to_vec())
    };
    ensure!(ask("/")? == b"hello\n", "another page");
    let mut idle = Forward::open(stage, &pod.id, 8080)?;
    let big = ask("/big")?;
    ensure!(big.len() == SIZE && big.iter().all(|b| *b == b'x'), "{} bytes of {SIZE}", big.len());
    idle.send(b"GET / HTTP/1.0\r\n\r\n")?;
    let late = idle.read_to_end()?;
    ensure!(late.ends_with(b"hello\n"), "the connection that waited: {late:?}");
    Ok(())
}

fn port_forward_to_a_closed_port(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("sleep 1000")?;
    let mut forward = Forward::open(stage, &pod.id, 4711)?;
    // The connection may be accepted before it turns out that no process listens.
    let _ = forward.send(b"hello\n");
    let got = forward.read_to_end()?;
    ensure!(got.is_empty(), "a closed port answers: {got:?}");
    ensure!(container.out("echo fine")? == "fine");
    Ok(())
}

//! The Pod's network: reachable from the host and from other Pods, and gone afterwards.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_cri::v1 as api;

use super::case::{Case, cases};
use crate::bed::process::{patience, until};
use crate::client::pod::{Pod, pod_config};
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] =
    cases![pod_answers_the_host, pods_talk_to_each_other, host_port, network_outlives_a_container];

pub(super) const SERVE: &str =
    "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www";

pub(super) fn get(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience(Duration::from_secs(2)))?;
    stream.set_read_timeout(Some(patience(Duration::from_secs(5))))?;
    write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.rsplit("\r\n").next().unwrap_or_default().trim().to_owned())
}

pub(super) fn answers(address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let page =
        until(
            &format!("a page from {address}"),
            Duration::from_secs(15),
            || Ok(get(address).ok()),
        )?;
    ensure!(page == "hello", "page {page:?}");
    Ok(())
}

fn pod_answers_the_host(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let _server = pod.shell(SERVE)?;
    answers(&format!("{}:80", pod.ip()?))
}

fn pods_talk_to_each_other(stage: &Stage) -> Result<()> {
    let one = Pod::run(stage)?;
    let two = Pod::run(stage)?;
    let _server = one.shell(SERVE)?;
    let client = two.shell("sleep 1000")?;
    let ip = one.ip()?;
    ensure!(ip != two.ip()?, "two Pods with the address {ip}");
    // Not wget: that of a static busybox dies of the resolver where there is no name to ask for.
    let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {ip} 80 | tail -n 1");
    let page = until("a page from the other Pod", Duration::from_secs(15), || {
        Ok(client.out(&get).ok().filter(|page| !page.is_empty()))
    })?;
    ensure!(page == "hello", "page {page:?}");
    let own = client.out("ip -4 -o addr show dev eth0")?;
    ensure!(own.contains(&two.ip()?), "eth0 inside: {own}");
    Ok(())
}

/// The host's own address is reached through the CNI's portmap; 127.0.0.1 too.
fn host_port(stage: &Stage) -> Result<()> {
    let port = free_port()?;
    let mut config = pod_config(stage)?;
    config.port_mappings = vec![api::PortMapping {
        protocol: api::Protocol::Tcp.into(),
        container_port: 80,
        host_port: port.into(),
        host_ip: String::new(),
    }];
    let pod = Pod::run_config(stage, config)?;
    let _server = pod.shell(SERVE)?;
    answers(&format!("127.0.0.1:{port}"))
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn network_outlives_a_container(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let ip = pod.ip()?;
    for attempt in 0..2 {
        let mut config = crate::client::pod::shell(SERVE);
        config.metadata = Some(api::ContainerMetadata { name: "web".to_owned(), attempt });
        let container = pod.create(config)?;
        stage.cri.start(&container.id)?;
        answers(&format!("{ip}:80"))?;
        stage.cri.stop(&container.id, 0)?;
        stage.cri.remove(&container.id)?;
    }
    ensure!(pod.ip()? == ip, "the address changed to {}", pod.ip()?);
    Ok(())
}

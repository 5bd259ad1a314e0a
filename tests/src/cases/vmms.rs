//! What a machine's monitor is on the host: nobody, with nothing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::crashes::{pids, programs};
use super::{Case, cases};
use crate::client::pod::Pod;
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] = cases![monitors_are_nobody];

/// The first number that no system hands out.
const NOBODYS: u32 = 0x7000_0000;

/// Its group is more than nothing, and for those alone who run a guest by it.
const KVM: &str = "/dev/kvm";

/// Each machine's programs but virtiofsd, which serves files of every user, run as a user of that
/// machine's, without any privilege and any way to one.
fn monitors_are_nobody(stage: &Stage) -> Result<()> {
    let monitors: Vec<_> =
        programs(stage)?.into_iter().filter(|name| name != "virtiofsd").collect();
    let pods = [Pod::run(stage)?, Pod::run(stage)?];
    let mut users = Vec::new();
    for pod in &pods {
        let mut owners = Vec::new();
        for program in &monitors {
            let found = pids(stage, program, pod);
            ensure!(!found.is_empty(), "no {program} runs for the Pod");
            for pid in found {
                owners.push(user(pid).with_context(|| format!("{program}, process {pid}"))?);
            }
        }
        owners.dedup();
        ensure!(owners.len() == 1, "one machine's programs run as {owners:?}");
        users.extend(owners);
    }
    ensure!(users[0] != users[1], "two machines have one user, {}", users[0]);
    Ok(())
}

/// Whom a process runs as, which has no privileges.
fn user(pid: i32) -> Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("no {name} in {status}"))
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(field(set)?.trim_matches('0').is_empty(), "{set} is {}", field(set)?);
    }
    ensure!(field("NoNewPrivs")? == "1", "it can gain privileges");
    let ids = [field("Uid")?, field("Gid")?].join("\t");
    let ids: Vec<u32> = ids.split('\t').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ids.iter().all(|id| *id == ids[0]) && ids[0] >= NOBODYS, "it is {ids:?}");
    let kvm = match has_open(pid, KVM)? {
        true => Some(std::fs::metadata(KVM)?.gid()),
        false => None,
    };
    let groups = field("Groups")?;
    for group in groups.split_whitespace().map(str::parse::<u32>) {
        let group = group?;
        ensure!(group != 0 && Some(group) == kvm, "it is in group {group}; KVM's is {kvm:?}");
    }
    Ok(ids[0])
}

fn has_open(pid: i32, file: &str) -> Result<bool> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may have been closed since.
        if std::fs::read_link(entry?.path()).is_ok_and(|target| target == Path::new(file)) {
            return Ok(true);
        }
    }
    Ok(false)
}

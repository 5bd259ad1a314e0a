//! The host user and privileges of a VM's programs.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::case::{Case, cases};
use super::vm_processes::{pids, programs};
use crate::client::pod::Pod;
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] = cases![vmms_are_unprivileged];

/// The first UID of those that no system allots.
const FIRST_UID: u32 = 0x7000_0000;

/// A process that has it open may be in its group.
const KVM: &str = "/dev/kvm";

/// The programs of each VM run as a user of their own, without privileges and any way to gain them;
/// not virtiofsd, which serves files of every user.
fn vmms_are_unprivileged(stage: &Stage) -> Result<()> {
    let names: Vec<_> = programs(stage)?.into_iter().filter(|name| name != "virtiofsd").collect();
    let pods = [Pod::run(stage)?, Pod::run(stage)?];
    let mut users = Vec::new();
    for pod in &pods {
        let mut owners = Vec::new();
        for program in &names {
            let found = pids(stage, program, pod);
            ensure!(!found.is_empty(), "no {program} runs for the Pod");
            for pid in found {
                owners.push(user(pid).with_context(|| format!("{program}, process {pid}"))?);
            }
        }
        owners.dedup();
        ensure!(owners.len() == 1, "the programs of one VM run as {owners:?}");
        users.extend(owners);
    }
    ensure!(users[0] != users[1], "two VMs have one user, {}", users[0]);
    Ok(())
}

/// The user of a process; fails if it has privileges.
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
    ensure!(ids.iter().all(|id| *id == ids[0]) && ids[0] >= FIRST_UID, "it is {ids:?}");
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

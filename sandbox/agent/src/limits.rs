//! The OCI specification's `linux.resources`, which speaks of cgroup v1, as files of cgroup v2.

use libcontainer::oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::error::{Result, invalid};

/// A value for a file of the control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) file: String,
    pub(crate) value: String,
    /// Whether a missing file is a failure: a limit that cannot be held.
    pub(crate) required: bool,
}

/// Reads `json`, a `linux.resources` object.
pub(crate) fn parse(json: &[u8]) -> Result<LinuxResources> {
    serde_json::from_slice(json)
        .map_err(|error| invalid(format!("resources is no linux.resources object: {error}")))
}

/// What to write for `resources`. What is absent is left as it is.
pub(crate) fn writes(resources: &LinuxResources) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_writes(memory, &mut writes)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, &mut writes);
    }
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()) {
        // 0 means no limit, as -1 does.
        put(&mut writes, "pids.max", max_or(limit, 0));
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.max", page.page_size());
        check_file("hugepageLimits pageSize", &file)?;
        writes.push(Write { file, value: page.limit().to_string(), required: page.limit() > 0 });
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|io| io.weight()) {
        // 10..1000 to 1..10000; without an I/O scheduler that weighs there is no such file.
        let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
        let value = format!("default {weight}");
        writes.push(Write { file: "io.weight".into(), value, required: false });
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        check_file("unified key", file)?;
        put(&mut writes, file, value.clone());
    }
    Ok(writes)
}

fn put(writes: &mut Vec<Write>, file: &str, value: String) {
    writes.push(Write { file: file.into(), value, required: true });
}

/// A limit as a file's text: `max` for one at or below `none`.
fn max_or(limit: i64, none: i64) -> String {
    if limit <= none { "max".into() } else { limit.to_string() }
}

fn check_file(what: &str, file: &str) -> Result<()> {
    let fine = file.contains('.') && !file.starts_with('.') && !file.contains('/');
    if fine {
        Ok(())
    } else {
        Err(invalid(format!("{what} {file:?} names no file of a control group")))
    }
}

fn memory_writes(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<()> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let mut swap_write = None;
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        // v1 counts memory and swap together, v2 swap alone.
        let value = match limit {
            _ if swap < 0 => "max".to_owned(),
            Some(limit) if limit < 0 => {
                return Err(invalid(format!(
                    "memory swap {swap} needs a memory limit, not {limit}"
                )));
            }
            Some(limit) if swap < limit => {
                return Err(invalid(format!("memory swap {swap} is below the limit {limit}")));
            }
            Some(limit) => (swap - limit).to_string(),
            None => return Err(invalid(format!("memory swap {swap} needs a memory limit"))),
        };
        swap_write = Some(Write { file: "memory.swap.max".into(), value, required: false });
    }
    if let Some(limit) = limit {
        put(writes, "memory.max", max_or(limit, -1));
    }
    writes.extend(swap_write);
    if let Some(reservation) = memory.reservation().filter(|bytes| *bytes != 0) {
        put(writes, "memory.low", max_or(reservation, -1));
    }
    Ok(())
}

fn cpu_writes(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    if let Some(idle) = cpu.idle() {
        put(writes, "cpu.idle", idle.to_string());
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        // 2..262144 to 1..10000.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        // A group that is idle takes no weight.
        if cpu.idle().unwrap_or(0) == 0 {
            put(writes, "cpu.weight", weight.to_string());
        }
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    match (quota, period) {
        (None, None) => {}
        (quota, None) => put(writes, "cpu.max", max_or(quota.unwrap_or(-1), -1)),
        (quota, Some(period)) => {
            let quota = max_or(quota.unwrap_or(-1), -1);
            put(writes, "cpu.max", format!("{quota} {period}"));
        }
    }
    if let Some(burst) = cpu.burst() {
        put(writes, "cpu.max.burst", burst.to_string());
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            put(writes, file, list.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<(String, String)> {
        let writes = writes(&parse(json.as_bytes()).unwrap()).unwrap();
        writes.into_iter().map(|write| (write.file, write.value)).collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.into(), value.into())
    }

    #[test]
    fn shares_and_quotas() {
        assert_eq!(of(r#"{"cpu":{"shares":1024}}"#), [pair("cpu.weight", "39")]);
        assert_eq!(of(r#"{"cpu":{"shares":2}}"#), [pair("cpu.weight", "1")]);
        assert_eq!(of(r#"{"cpu":{"shares":262144}}"#), [pair("cpu.weight", "10000")]);
        let cpu = r#"{"cpu":{"quota":50000,"period":100000,"cpus":"0-1"}}"#;
        assert_eq!(of(cpu), [pair("cpu.max", "50000 100000"), pair("cpuset.cpus", "0-1")]);
        assert_eq!(of(r#"{"cpu":{"quota":-1,"period":100000}}"#), [pair("cpu.max", "max 100000")]);
        assert_eq!(of(r#"{"cpu":{"quota":0,"period":0,"shares":0}}"#), []);
    }

    #[test]
    fn memory_counts_swap_alone() {
        let both = r#"{"memory":{"limit":1000,"swap":1500,"reservation":7}}"#;
        let expected =
            [pair("memory.max", "1000"), pair("memory.swap.max", "500"), pair("memory.low", "7")];
        assert_eq!(of(both), expected);
        assert_eq!(of(r#"{"memory":{"limit":-1}}"#), [pair("memory.max", "max")]);
        let low = parse(br#"{"memory":{"limit":1000,"swap":999}}"#).unwrap();
        let error = writes(&low).unwrap_err().to_string();
        assert_eq!(error, "memory swap 999 is below the limit 1000");
    }

    #[test]
    fn the_rest() {
        assert_eq!(of(r#"{"pids":{"limit":100}}"#), [pair("pids.max", "100")]);
        assert_eq!(of(r#"{"pids":{"limit":-1}}"#), [pair("pids.max", "max")]);
        assert_eq!(of(r#"{"blockIO":{"weight":1000}}"#), [pair("io.weight", "default 10000")]);
        let unified = r#"{"unified":{"memory.oom.group":"1"}}"#;
        assert_eq!(of(unified), [pair("memory.oom.group", "1")]);
        let evil = parse(br#"{"unified":{"../cgroup.procs":"1"}}"#).unwrap();
        assert!(writes(&evil).is_err());
    }
}

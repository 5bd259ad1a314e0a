//! Translates the OCI specification's `linux.resources`, in cgroup v1's units, to cgroup v2 files.

use libcontainer::oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::error::{Result, invalid};

/// A value for a file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) file: String,
    pub(crate) value: String,
    /// Whether a missing file is an error, because the limit cannot be enforced.
    pub(crate) required: bool,
}

/// Parses a `linux.resources` object.
pub(crate) fn parse(json: &[u8]) -> Result<LinuxResources> {
    serde_json::from_slice(json)
        .map_err(|error| invalid(format!("resources is not a linux.resources object: {error}")))
}

/// The settings for `resources`, in the order to write them; absent limits have none.
pub(crate) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut settings)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut settings);
    }
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()) {
        // 0 means no limit, as -1 does.
        put(&mut settings, "pids.max", max_or(limit, 0));
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.max", page.page_size());
        check_file("hugepageLimits pageSize", &file)?;
        let value = page.limit().to_string();
        settings.push(Setting { file, value, required: page.limit() > 0 });
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|io| io.weight()) {
        // 10..1000 to 1..10000. The file exists only with an I/O scheduler that has weights.
        let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
        let value = format!("default {weight}");
        settings.push(Setting { file: "io.weight".into(), value, required: false });
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        check_file("unified key", file)?;
        put(&mut settings, file, value.clone());
    }
    Ok(settings)
}

fn put(settings: &mut Vec<Setting>, file: &str, value: String) {
    settings.push(Setting { file: file.into(), value, required: true });
}

/// A limit as a file's text: `max` for one at or below `unlimited`.
fn max_or(limit: i64, unlimited: i64) -> String {
    if limit <= unlimited { "max".into() } else { limit.to_string() }
}

fn check_file(what: &str, file: &str) -> Result<()> {
    let valid = file.contains('.') && !file.starts_with('.') && !file.contains('/');
    if valid {
        Ok(())
    } else {
        Err(invalid(format!("{what} {file:?} does not name a cgroup file")))
    }
}

fn memory_settings(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<()> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let mut swap_setting = None;
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
        swap_setting = Some(Setting { file: "memory.swap.max".into(), value, required: false });
    }
    if let Some(limit) = limit {
        put(settings, "memory.max", max_or(limit, -1));
    }
    settings.extend(swap_setting);
    if let Some(reservation) = memory.reservation().filter(|bytes| *bytes != 0) {
        put(settings, "memory.low", max_or(reservation, -1));
    }
    Ok(())
}

fn cpu_settings(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    if let Some(idle) = cpu.idle() {
        put(settings, "cpu.idle", idle.to_string());
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        // 2..262144 to 1..10000.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        // An idle cgroup has no weight.
        if cpu.idle().unwrap_or(0) == 0 {
            put(settings, "cpu.weight", weight.to_string());
        }
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    match (quota, period) {
        (None, None) => {}
        (quota, None) => put(settings, "cpu.max", max_or(quota.unwrap_or(-1), -1)),
        (quota, Some(period)) => {
            let quota = max_or(quota.unwrap_or(-1), -1);
            put(settings, "cpu.max", format!("{quota} {period}"));
        }
    }
    if let Some(burst) = cpu.burst() {
        put(settings, "cpu.max.burst", burst.to_string());
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            put(settings, file, list.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<(String, String)> {
        let settings = settings(&parse(json.as_bytes()).unwrap()).unwrap();
        settings.into_iter().map(|setting| (setting.file, setting.value)).collect()
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
    fn memory_swap_excludes_memory() {
        let both = r#"{"memory":{"limit":1000,"swap":1500,"reservation":7}}"#;
        let expected =
            [pair("memory.max", "1000"), pair("memory.swap.max", "500"), pair("memory.low", "7")];
        assert_eq!(of(both), expected);
        assert_eq!(of(r#"{"memory":{"limit":-1}}"#), [pair("memory.max", "max")]);
        let low = parse(br#"{"memory":{"limit":1000,"swap":999}}"#).unwrap();
        let error = settings(&low).unwrap_err().to_string();
        assert_eq!(error, "memory swap 999 is below the limit 1000");
    }

    #[test]
    fn pids_weights_and_unified_files() {
        assert_eq!(of(r#"{"pids":{"limit":100}}"#), [pair("pids.max", "100")]);
        assert_eq!(of(r#"{"pids":{"limit":-1}}"#), [pair("pids.max", "max")]);
        assert_eq!(of(r#"{"blockIO":{"weight":1000}}"#), [pair("io.weight", "default 10000")]);
        let unified = r#"{"unified":{"memory.oom.group":"1"}}"#;
        assert_eq!(of(unified), [pair("memory.oom.group", "1")]);
        let evil = parse(br#"{"unified":{"../cgroup.procs":"1"}}"#).unwrap();
        let error = settings(&evil).unwrap_err().to_string();
        assert_eq!(error, "unified key \"../cgroup.procs\" does not name a cgroup file");
    }
}

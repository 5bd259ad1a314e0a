//! Resource usage of a container, as far as both cgroup versions report it.

/// Current usage. `None` for a figure that the backend or the host does not provide, and for a limit
/// that is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time used, in nanoseconds.
    pub cpu_total_ns: Option<u64>,
    /// CPU time in user mode, in nanoseconds.
    pub cpu_user_ns: Option<u64>,
    /// CPU time in kernel mode, in nanoseconds.
    pub cpu_system_ns: Option<u64>,
    /// Scheduler periods that passed while a quota was set.
    pub cpu_periods: Option<u64>,
    /// Periods in which the quota ran out.
    pub cpu_throttled_periods: Option<u64>,
    /// Time tasks were throttled, in nanoseconds.
    pub cpu_throttled_ns: Option<u64>,
    /// Memory in use, in bytes, page cache included.
    pub memory_usage: Option<u64>,
    /// Peak memory use, in bytes.
    pub memory_peak: Option<u64>,
    /// The memory limit, in bytes.
    pub memory_limit: Option<u64>,
    /// Page cache that can be dropped first, in bytes; usage less this is the working set.
    pub memory_inactive_file: Option<u64>,
    /// Anonymous memory, in bytes.
    pub memory_anon: Option<u64>,
    /// Page cache, in bytes.
    pub memory_file: Option<u64>,
    /// Page faults.
    pub memory_pgfault: Option<u64>,
    /// Page faults that needed a disk read.
    pub memory_pgmajfault: Option<u64>,
    /// Processes killed by the out-of-memory killer.
    pub oom_kills: Option<u64>,
    /// Processes and threads in use.
    pub pids: Option<u64>,
    /// The limit on processes and threads.
    pub pids_limit: Option<u64>,
    /// Counters of the sandbox's network interfaces.
    pub network: Vec<Interface>,
}

/// Counters of one network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name inside the sandbox.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receive.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped on send.
    pub tx_dropped: u64,
}

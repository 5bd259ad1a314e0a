//! CPU and memory: requests and limits to cgroup values, by the kubelet's arithmetic.

use k8s_cri::v1::LinuxContainerResources;
use kube_manifest::{Amounts, Manifest, Pod, Quantity, Resources};
use sandbox_host::cgroup::Limits;

/// The scheduler period of CPU limits, in microseconds.
const CPU_PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const SHARES_PER_CPU: i64 = 1024;

/// The cgroup values of one container.
pub(super) fn container(
    pod: &Pod,
    resources: &Resources,
    node_memory: i64,
) -> LinuxContainerResources {
    let mut linux = linux(resources.requests.cpu, resources.limits);
    linux.oom_score_adj = oom_score(pod, resources, node_memory);
    linux
}

/// The sum of the Pod's containers, without overhead.
pub(super) fn pod_sum(pod: &Pod) -> LinuxContainerResources {
    let sum = sum(pod);
    linux(sum.requests.cpu, sum.limits)
}

/// The overhead of the Pod's RuntimeClass as a container's resources.
pub(super) fn overhead(overhead: Amounts) -> LinuxContainerResources {
    linux(overhead.cpu, overhead)
}

/// The limits of the Pod's cgroup: set only where every container is limited, as in the kubelet.
pub(crate) fn pod_limits(manifest: &Manifest, pod: &Pod) -> Limits {
    let overhead = manifest.overhead(pod);
    let sum = sum(pod);
    let all = |limit: fn(&Amounts) -> Option<Quantity>| {
        pod.all_containers().all(|container| limit(&container.resources.limits).is_some())
    };
    let add = |amount: Option<Quantity>, more: Option<Quantity>| {
        amount.map(|amount| amount.plus(more.unwrap_or_default()))
    };
    let cpu = add(sum.limits.cpu, overhead.cpu).filter(|_| all(|limits| limits.cpu));
    let memory = add(sum.limits.memory, overhead.memory).filter(|_| all(|limits| limits.memory));
    let requested = add(sum.requests.cpu.or(Some(Quantity::default())), overhead.cpu);
    let quota = cpu.and_then(quota);
    Limits {
        memory: memory.map(Quantity::units).filter(|&bytes| bytes > 0),
        // Without a quota the shares stay the default.
        cpu_shares: quota.map(|_| shares(requested.unwrap_or_default()).unsigned_abs()),
        cpu_quota: quota,
        cpu_period: quota.map(|_| CPU_PERIOD.unsigned_abs()),
        ..Limits::default()
    }
}

fn linux(cpu_request: Option<Quantity>, limits: Amounts) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_shares: shares(cpu_request.or(limits.cpu).unwrap_or_default()),
        cpu_period: CPU_PERIOD,
        cpu_quota: limits.cpu.and_then(quota).unwrap_or_default(),
        memory_limit_in_bytes: limits.memory.map(Quantity::units).unwrap_or_default(),
        ..LinuxContainerResources::default()
    }
}

fn shares(cpu: Quantity) -> i64 {
    (cpu.milli().saturating_mul(SHARES_PER_CPU) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

fn quota(cpu: Quantity) -> Option<i64> {
    (!cpu.is_zero()).then(|| (cpu.milli().saturating_mul(CPU_PERIOD) / 1000).max(MIN_QUOTA))
}

/// Containers run together, init containers one at a time before them: the larger of the two counts.
fn sum(pod: &Pod) -> Resources {
    let mut total = Resources::default();
    for container in &pod.containers {
        each(&mut total, &container.resources, Quantity::plus);
    }
    for container in &pod.init_containers {
        each(&mut total, &container.resources, Ord::max);
    }
    total
}

fn each(total: &mut Resources, more: &Resources, join: fn(Quantity, Quantity) -> Quantity) {
    let add = |total: &mut Option<Quantity>, more: Option<Quantity>| {
        if let Some(more) = more {
            *total = Some(total.map_or(more, |total| join(total, more)));
        }
    };
    add(&mut total.requests.cpu, more.requests.cpu);
    add(&mut total.requests.memory, more.requests.memory);
    add(&mut total.limits.cpu, more.limits.cpu);
    add(&mut total.limits.memory, more.limits.memory);
}

/// Guaranteed Pods are killed last, BestEffort Pods first, those between by the share of memory they asked for.
fn oom_score(pod: &Pod, resources: &Resources, node_memory: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    const BEST_EFFORT: i64 = 1000;
    let amounts = |resources: &Resources| {
        [
            resources.requests.cpu,
            resources.requests.memory,
            resources.limits.cpu,
            resources.limits.memory,
        ]
    };
    let guaranteed = |resources: &Resources| {
        amounts(resources).iter().all(|amount| amount.is_some_and(|it| !it.is_zero()))
            && resources.requests == resources.limits
    };
    let nothing = |resources: &Resources| {
        amounts(resources).iter().all(|amount| amount.is_none_or(Quantity::is_zero))
    };
    if pod.all_containers().all(|container| guaranteed(&container.resources)) {
        return GUARANTEED;
    }
    if pod.all_containers().all(|container| nothing(&container.resources)) {
        return BEST_EFFORT;
    }
    let request = resources.requests.memory.map(Quantity::units).unwrap_or_default();
    let share = i128::from(request) * 1000 / i128::from(node_memory.max(1));
    let score = BEST_EFFORT - i64::try_from(share).unwrap_or(BEST_EFFORT);
    score.clamp(BEST_EFFORT + GUARANTEED, BEST_EFFORT - 1)
}

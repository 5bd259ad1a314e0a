//! Amounts of CPU and memory.

use crate::quantity::Quantity;

/// Amounts of the two resources that are passed to the runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// In CPUs.
    pub cpu: Option<Quantity>,
    /// In bytes.
    pub memory: Option<Quantity>,
}

/// `resources`, with the API server's default applied: a request that is not set equals the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// What the container is guaranteed.
    pub requests: Amounts,
    /// What the container may use at most.
    pub limits: Amounts,
}

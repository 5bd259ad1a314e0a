//! Planning one container.

use std::collections::BTreeSet;

use crate::error::PlanError;
use crate::facts::Facts;
use crate::plan::{ContainerPlan, Request};
use crate::{devices, mounts, rootfs, spec};

/// Plans a container by the rules of this crate's documentation.
///
/// # Errors
///
/// [`PlanError`] names the place in the configuration, the reason and a fix.
pub fn plan(request: &Request<'_>, facts: &Facts) -> Result<ContainerPlan, PlanError> {
    let mut plan = ContainerPlan::new(request);
    spec::edit(&mut plan, request)?;
    rootfs::plan(&mut plan, request, facts)?;
    mounts::plan(&mut plan, request, facts)?;
    devices::plan(&mut plan, facts)?;
    bounded(&mut plan, request)?;
    Ok(plan)
}

/// Removes duplicate disks, and checks that the VM has slots for the rest.
fn bounded(plan: &mut ContainerPlan, request: &Request<'_>) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    plan.disks.retain(|disk| seen.insert(disk.id.clone()));
    let needed = request.pod.disks.union(&seen).count();
    let driver = request.capabilities.name;
    let room = request.capabilities.disks;
    let fix = "fewer containers or block volumes, or an image of fewer layers, fit; \
                overlayfs as the snapshotter needs no disks";
    if needed > room { Err(PlanError::Disks { needed, room, driver, fix }) } else { Ok(()) }
}

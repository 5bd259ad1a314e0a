//! Runs Pods on this node through a container runtime's CRI socket, as a kubelet would: volumes, cgroups, variables,
//! images and logs, but without a cluster.

#![forbid(unsafe_code)]

mod cgroup;
mod convert;
mod credentials;
mod cri;
mod directory;
mod images;
mod labels;
mod logs;
mod mounts;
mod node;
mod node_error;
mod pull;
mod remove;
mod reporter;
mod start;
mod uncancelled;
mod volumes;
mod wait;

pub use cgroup::CgroupDriver;
pub use convert::{ConvertError, Placement};
pub use cri::{Cri, CriError};
pub use directory::{DirectoryError, PodDirectory};
pub use images::ImageError;
pub use labels::{CONTAINER_LABEL, NAME_LABEL, NAMESPACE_LABEL, TTY_ANNOTATION};
pub use logs::{Follower, LogError, Output, Printer, print_log};
pub use node::{NodeFacts, facts};
pub use node_error::NodeError;
pub use pull::{ImageRequest, PullError, pull};
pub use remove::{RemoveError, all_pods, remove, sandboxes};
pub use reporter::{PullProgress, Reporter};
pub use start::{Outcome, StartError, Starter};
pub use volumes::{SubPathError, VolumeError};
pub use wait::{Exited, StartedContainer, WaitError, first_failure, until_deadline, until_exit};

//! PID 1 of the guest: sets it up, connects to the host and serves `agent-api`.
//!
//! The same binary is the short-lived [`runtime`] process that creates containers' processes:
//! libcontainer forks, which is unsafe in a process with threads.

mod bundle;
mod cgroup;
mod container;
mod containers;
mod copy;
mod devices;
mod error;
mod exec;
mod forward;
mod launch;
mod limits;
mod memory_stall;
mod paths;
mod pod;
mod process;
mod reaper;
mod runtime;
mod sandbox;
mod serve;
mod service;
mod spec;
mod stats;
mod stdio;
mod streams;

use agent_system::{boot, log_error, log_info, power_off, power_off_on_panic, since_boot};

fn main() {
    let started = since_boot();
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(runtime::VERB) {
        std::process::exit(runtime::run(arguments.collect()));
    }
    power_off_on_panic();
    let served = if std::process::id() == 1 {
        boot().and_then(|()| cgroup::prepare()).and_then(|()| serve::serve(started))
    } else {
        // The mark, which the guest image's builder looks for in this file, must be used somewhere.
        Err(error::invalid(format!(
            "this program must be PID 1 of a guest ({})",
            agent_api::AGENT_MARK,
        )))
    };
    match served {
        Ok(()) => {
            log_info("the host has closed the connection or asked to shut down: powering off")
        }
        Err(error) => log_error(&error.to_string()),
    }
    if std::process::id() == 1 {
        power_off();
    }
    std::process::exit(1);
}

//! PID 1 of the guest: sets it up, connects to the host and serves `agent-api`.
//!
//! The same binary is the short-lived [`runtime`] process that creates containers' processes:
//! libcontainer forks, which is unsafe in a process with threads.

mod blocking;
mod boot;
mod bundle;
mod cgroup;
mod clock;
mod configure;
mod console;
mod container;
mod containers;
mod copy;
mod devices;
mod disk;
mod error;
mod exec;
mod forward;
mod hotplug;
mod launch;
mod limits;
mod memory_stall;
mod mounts;
mod network;
mod paths;
mod pod;
mod process;
mod reaper;
mod rootfs;
mod runtime;
mod sandbox;
mod serve;
mod service;
mod spec;
mod stats;
mod stdio;
mod storage;
mod streams;
mod sysctl;
mod uevent;

fn main() {
    let started = clock::since_boot();
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(runtime::VERB) {
        std::process::exit(runtime::run(arguments.collect()));
    }
    console::power_off_on_panic();
    let served = if std::process::id() == 1 {
        boot::boot().and_then(|()| serve::serve(started))
    } else {
        // The mark, which the guest image's builder looks for in this file, must be used somewhere.
        Err(error::invalid(format!(
            "this program must be PID 1 of a guest ({})",
            agent_api::AGENT_MARK,
        )))
    };
    match served {
        Ok(()) => {
            console::info("the host has closed the connection or asked to shut down: powering off")
        }
        Err(error) => console::error(&error.to_string()),
    }
    if std::process::id() == 1 {
        console::power_off();
    }
    std::process::exit(1);
}

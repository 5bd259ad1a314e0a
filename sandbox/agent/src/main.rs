//! PID 1 of the guest: it makes the guest ready, dials the host and serves `agent-api`.
//!
//! The same binary runs as the short-lived helper that makes containers' processes
//! ([`helper`]): libcontainer forks, and a process with threads must not.

mod boot;
mod cgroup;
mod clock;
mod console;
mod container;
mod containers;
mod copy;
mod devices;
mod disk;
mod door;
mod error;
mod exec;
mod forward;
mod ground;
mod guest;
mod helper;
mod launch;
mod limits;
mod network;
mod process;
mod reaper;
mod rootfs;
mod serve;
mod service;
mod spec;
mod stats;
mod stdio;
mod storage;
mod streams;
mod thrash;
mod uevent;

fn main() {
    let started = clock::since_boot();
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(helper::VERB) {
        std::process::exit(helper::run(arguments.collect()));
    }
    console::power_off_on_panic();
    let served = if std::process::id() == 1 {
        boot::boot().and_then(|()| serve::serve(started))
    } else {
        // The mark is what a guest's builder reads from this file.
        Err(error::invalid(format!(
            "this program is the first process of a guest and runs nowhere else ({})",
            agent_api::AGENT_MARK,
        )))
    };
    match served {
        Ok(()) => console::info("the host is gone or asked for the end: powering off"),
        Err(error) => console::error(&error.to_string()),
    }
    if std::process::id() == 1 {
        console::power_off();
    }
    std::process::exit(1);
}

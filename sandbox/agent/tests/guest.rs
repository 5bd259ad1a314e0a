#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
//! The agent in a real guest, seen from the host.
//!
//! Runs when `BULKHEAD_TEST_GUEST=1`, with what `tests/boot` needs in the environment; needs
//! root. Without it the tests are skipped, and say so.

#[path = "guest/cases.rs"]
mod cases;
#[path = "guest/host.rs"]
mod host;
#[path = "guest/limits.rs"]
mod limits;
#[path = "guest/pod.rs"]
mod pod;
#[path = "guest/streams.rs"]
mod streams;

use std::time::Instant;

use host::Host;

macro_rules! run {
    ($host:expr, $($case:path),+ $(,)?) => {
        $(
            let began = Instant::now();
            $case(&$host).await;
            println!("{} ok, {} ms", stringify!($case), began.elapsed().as_millis());
        )+
    };
}

fn wanted() -> bool {
    let wanted = std::env::var("BULKHEAD_TEST_GUEST").is_ok_and(|value| value == "1");
    if !wanted {
        println!("skipped: BULKHEAD_TEST_GUEST is not 1 (see sandbox/agent/tests/boot)");
    }
    wanted
}

#[tokio::test]
async fn a_guest_runs_containers() {
    if !wanted() {
        return;
    }
    let host = Host::boot().await;
    run!(
        host,
        cases::configure,
        pod::first,
        cases::output_and_exit_code,
        cases::layers,
        cases::execs,
        cases::exec_confinement,
        cases::errors,
        streams::stdin,
        streams::close_stdin,
        streams::terminal,
        streams::much_output,
        streams::background_process,
        streams::stalled_reader,
        streams::forward,
        limits::kill,
        limits::pids_and_stats,
        limits::pause,
        limits::update,
        limits::out_of_memory,
        pod::shared_processes,
        pod::shared_memory,
        pod::storages,
        pod::delete,
        pod::online_and_clock,
    );
    host.shut_down().await;
}

#[tokio::test]
async fn a_guest_ends_with_its_host() {
    if !wanted() {
        return;
    }
    let host = Host::boot().await;
    host.hang_up().await;
}

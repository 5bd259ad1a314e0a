#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
//! The agent in a real guest, tested from the host.
//!
//! Needs root, `BULKHEAD_TEST_GUEST=1` and what `tests/boot` needs in the environment.

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

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_TEST_GUEST"]
async fn a_guest_runs_containers() {
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
#[ignore = "needs root, env:BULKHEAD_TEST_GUEST"]
async fn a_guest_powers_off_with_its_connection() {
    let host = Host::boot().await;
    host.hang_up().await;
}

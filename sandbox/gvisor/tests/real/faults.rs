//! What breaks around a sandbox.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sandbox_core::{Backend, Id, Kind, StdioPaths};
use sandbox_host::ProcessRef;

use crate::bed::{Bed, ended, join, running};

/// Processes whose command line holds every one of `words`.
fn processes(words: &[&str]) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let numbered = all.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    numbered
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            words.iter().all(|word| line.contains(word))
        })
        .collect()
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_create_that_hangs_is_cut_and_leaves_nothing() {
    let mut bed = Bed::new().await;
    let wrapper = bed.dir.path().join("runsc");
    let real = bed.config.runsc.display();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' create '*) {real} \"$@\"; exec sleep 1000;; esac\n\
         exec {real} \"$@\"\n"
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    bed.config.runsc = wrapper;
    bed.config.timeouts.create = 3;
    let error = bed.launch(bed.script("c", "sleep 1000")).await.err().unwrap();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    assert!(error.to_string().contains("runsc create did not exit within 3 s"), "{error}");
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn all_processes_exit_with_their_sandbox() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let member = running(&sandbox, bed.script("m", "sleep 1000")).await;
    let waiting = join(&sandbox, bed.script("w", "sleep 1000")).await.unwrap();
    let request = bed.exec_request("x", &["sleep", "1000"], StdioPaths::default());
    let exec = member.exec(request).await.unwrap();
    exec.start(|| {}).await.unwrap();
    ProcessRef::of(pause.container.pid()).unwrap().kill();
    assert_eq!(sandbox.exited().await.status, 137);
    for process in [&pause.init, &member.init, &waiting.init, &exec] {
        assert_eq!(ended(process).await.status, 137);
    }
    let late = join(&sandbox, bed.script("n", "true")).await.err().unwrap();
    assert_eq!(late.kind(), Kind::FailedPrecondition, "{late}");
    assert_ne!(member.container.stats().await.unwrap_err().kind(), Kind::Internal);
    for task in [pause, member, waiting] {
        task.delete().await;
    }
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_purge_needs_no_process_and_no_state_of_runsc() {
    let bed = Bed::new().await;
    let (sandbox, pause) = bed.pod().await;
    let member = running(&sandbox, bed.script("m", "sleep 1000")).await;
    let root = bed.config.root.display().to_string();
    let everything = processes(&[&root]);
    assert!(everything.len() >= 2, "{everything:?}");
    for pid in everything {
        if let Some(mark) = ProcessRef::of(pid) {
            mark.kill();
        }
    }
    ended(&member.init).await;
    ended(&pause.init).await;
    // runsc's own state is gone as well.
    for file in fs::read_dir(bed.config.root.join("test")).unwrap().flatten() {
        fs::remove_file(file.path()).unwrap();
    }
    for id in ["m", "pod", "m", "pod"] {
        let name = Id::new(id).unwrap();
        bed.backend().purge(&name, &bed.bundle(id)).await.unwrap();
    }
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_missing_runsc_is_named() {
    let mut bed = Bed::new().await;
    bed.config.runsc = "/nonexistent/runsc".into();
    let error = bed.launch(bed.script("c", "true")).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("/nonexistent/runsc cannot be used"), "{error}");
    bed.config.runsc = "/bin/false".into();
    let error = bed.launch(bed.script("c", "true")).await.err().unwrap();
    assert!(error.to_string().contains("/bin/false does not answer as runsc does"), "{error}");
    bed.config.runsc = Path::new("/bin/true").into();
    bed.config.flags = [("typo".to_owned(), "1".to_owned())].into();
    let purged = bed.backend().purge(&Id::new("c").unwrap(), bed.dir.path()).await;
    purged.unwrap();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_flag_that_this_build_lacks_is_named() {
    let mut bed = Bed::new().await;
    bed.config.flags = [("no-such-flag".to_owned(), "1".to_owned())].into();
    let error = bed.launch(bed.script("c", "true")).await.err().unwrap();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("does not know --no-such-flag"), "{error}");
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_flood_of_output_arrives_whole() {
    let bed = Bed::new().await;
    const SIZE: usize = 100 << 20;
    let fifo = bed.empty_fifo("out");
    let script = format!("dd if=/dev/zero bs=64k count={} 2>/dev/null", SIZE >> 16);
    let mut request = bed.script("c", &script);
    request.stdio.stdout = Some(fifo.clone());
    let reader = std::thread::spawn(move || {
        let mut file = fs::File::open(fifo).unwrap();
        let mut total = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => return total,
                read => total += read,
            }
        }
    });
    let (sandbox, task) = bed.launch(request).await.unwrap();
    let begun = std::time::Instant::now();
    task.start().await;
    assert_eq!(ended(&task.init).await.status, 0);
    let rate = SIZE as f64 / 1e6 / begun.elapsed().as_secs_f64();
    task.delete().await;
    drop((sandbox, task));
    assert_eq!(reader.join().unwrap(), SIZE);
    eprintln!("{rate:.0} MB/s, start and exit of the process included");
    bed.assert_clean();
}

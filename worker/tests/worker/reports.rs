//! P7, P9, P11, P14, P15, P16: what a worker says, and in which order.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use longshore_protocol::control::Control;
use longshore_protocol::event::{Event, Phase};
use longshore_protocol::job::{Job, Keep};
use longshore_protocol::outcome::CancelledBy;
use longshore_protocol::output::{Offsets, Stream, WINDOW_BYTES, WINDOW_BYTES_MIN, window_bytes};
use longshore_protocol::{Outcome, SnapshotId};

use crate::fleet::{Fleet, claim, claims, fence};
use crate::tap::Mode;

#[tokio::test]
async fn p7_a_heartbeat_says_what_is() {
    let mut fleet = Fleet::new().await;
    fleet.slots = 2;
    let (worker, _) = fleet.started().await;
    let kept = Job { keep: Keep::Snapshot, ..fleet.job("a", "true") };
    fleet.carry_out(&kept).await;
    let job = fleet.job("b", "sleep 1000");
    fleet.dispatch(&job).await;
    let heartbeat = fleet.heartbeat_where(|hb| hb.attempts.iter().any(|held| held.phase == Phase::Running)).await;
    assert_eq!((&heartbeat.worker, heartbeat.incarnation), (&worker.id, worker.incarnation));
    assert_eq!((heartbeat.slots, heartbeat.slots_free), (2, 1));
    assert_eq!(claims(&heartbeat.attempts).len(), 2, "the finished one is held until it is settled");
    assert_eq!(heartbeat.snapshots, [SnapshotId::ephemeral(&fence(&kept, &worker.id))]);
    assert!(heartbeat.last_event >= 5, "hello, three of the first, accepted: {}", heartbeat.last_event);
    assert_eq!(heartbeat.engine.as_str(), "fake");
    worker.stop().await;
}

#[tokio::test]
async fn p7_a_heartbeat_that_cannot_be_sent_holds_nothing_up() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    worker.tap.set(".heartbeats", Mode::Hold);
    worker.tap.holds("\"heartbeat\"").await;
    assert_eq!(fleet.carry_out(&fleet.job("a", "true")).await.outcome, Outcome::Passed);
    worker.tap.set(".heartbeats", Mode::Pass);
    fleet.heartbeat_where(|hb| hb.attempts.len() == 1).await;
    worker.stop().await;
}

#[tokio::test]
async fn p9_what_was_not_confirmed_is_sent_again_in_order() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    // The first heartbeat comes when hello was confirmed: what is lost below is what comes after it.
    fleet.heartbeat().await;
    worker.tap.set(".events", Mode::LoseConfirms(3));
    fleet.dispatch(&fleet.job("a", "true")).await;
    let mut numbers = Vec::new();
    let mut words = Vec::new();
    // Each number counts once: a repeat is thrown away, as the coordinator does it.
    while words.len() < 3 {
        let message = fleet.message().await;
        let known = numbers.iter().max().copied().unwrap_or(1);
        assert!(message.number <= known + 1, "{} after {numbers:?}", message.number);
        numbers.push(message.number);
        if message.number > known {
            words.push(match message.event {
                Event::Accepted(_) => "accepted",
                Event::Started(_) => "started",
                Event::Finished(_) => "finished",
                other => panic!("{other:?}"),
            });
        }
    }
    assert_eq!(words, ["accepted", "started", "finished"]);
    assert!(numbers.iter().filter(|number| **number == 2).count() > 1, "accepted came again: {numbers:?}");
    assert_eq!(worker.tap.confirms_lost(), 3);
    worker.stop().await;
}

#[tokio::test]
async fn p9_a_sync_is_answered_with_every_record_under_the_next_number() {
    let mut fleet = Fleet::new().await;
    fleet.slots = 2;
    let (worker, _) = fleet.started().await;
    let (ended, running) = (fleet.job("a", "exit 7"), fleet.job("b", "sleep 1000"));
    fleet.carry_out(&ended).await;
    fleet.dispatch(&running).await;
    assert_eq!(fleet.accepted().await, claim(&running));
    let started = fleet.message().await;
    assert!(matches!(started.event, Event::Started(_)));
    fleet.control(&worker, Control::Sync).await;
    let message = fleet.message().await;
    assert_eq!(message.number, started.number + 1);
    let Event::Records { records } = message.event else { panic!("records were expected") };
    let phase = |job: &Job| records.iter().find(|record| record.claim == claim(job)).map(|record| &record.phase);
    assert_eq!(phase(&running), Some(&Phase::Running));
    assert!(
        matches!(phase(&ended), Some(Phase::Finished(finished)) if finished.outcome == Outcome::Failed { exit: 7 })
    );
    worker.stop().await;
}

#[tokio::test]
async fn p9_syncs_hold_nothing_up_while_no_event_can_be_sent() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "sleep 1000");
    fleet.dispatch(&job).await;
    assert_eq!(fleet.accepted().await, claim(&job));
    assert!(matches!(fleet.event().await, Event::Started(_)));
    worker.tap.set(".events", Mode::Hold);
    for _ in 0..100 {
        fleet.control(&worker, Control::Sync).await;
    }
    fleet.control(&worker, Control::Cancel { claim: claim(&job), by: CancelledBy::User }).await;
    fleet.heartbeat_where(|hb| matches!(hb.attempts[0].phase, Phase::Finished(_))).await;
    worker.tap.set(".events", Mode::Pass);
    let mut answers = 0;
    let finished = loop {
        match fleet.event().await {
            Event::Records { .. } => answers += 1,
            Event::Finished(finished) => break finished,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(finished.outcome, Outcome::Cancelled { by: CancelledBy::User });
    // One that had its number already, and one for all that came after that.
    assert!((1..=2).contains(&answers), "{answers}");
    worker.stop().await;
}

#[tokio::test]
async fn p11_finished_does_not_wait_for_the_log() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    worker.tap.set(".output", Mode::Hold);
    let job = fleet.job("a", "echo one; echo -n two");
    let finished = fleet.carry_out(&job).await;
    assert_eq!(finished.output, Offsets { stdout: 7, stderr: 0 }, "P14: final, although nothing was sent");
    worker.tap.set(".output", Mode::Pass);
    let log = fleet.log(&claim(&job), Offsets::default(), finished.output).await;
    assert_eq!(log.text(Stream::Stdout), "one\ntwo");
    worker.stop().await;
}

#[tokio::test]
async fn p14_output_is_sent_again_from_any_offset_on() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    // More than one read of the spool, and more than one message.
    let job = fleet.job("a", "seq 200000; echo oh >&2");
    let finished = fleet.carry_out(&job).await;
    let whole = (1..=200_000).map(|n| n.to_string()).collect::<Vec<_>>().join("\n") + "\n";
    assert_eq!(finished.output, Offsets { stdout: whole.len() as u64, stderr: 3 });
    let log = fleet.log(&claim(&job), Offsets::default(), finished.output).await;
    assert!(log.text(Stream::Stdout) == whole, "complete and in order");
    let middle = whole[..whole.len() / 2].rfind('\n').unwrap() + 1;
    for stdout in [0, 2, middle, whole.len()] {
        let stored = Offsets { stdout: stdout as u64, stderr: 0 };
        fleet.control(&worker, Control::Resend { claim: claim(&job), stored }).await;
        let log = fleet.log(&claim(&job), stored, finished.output).await;
        assert!(log.text(Stream::Stdout) == whole[stdout..], "from {stdout}");
        assert_eq!(log.text(Stream::Stderr), "oh\n");
    }
    worker.stop().await;
}

#[tokio::test]
async fn p14_output_whose_confirm_was_lost_is_complete_all_the_same() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    worker.tap.set(".output", Mode::LoseConfirms(2));
    let job = fleet.job("a", "seq 1000");
    let finished = fleet.carry_out(&job).await;
    let log = fleet.log(&claim(&job), Offsets::default(), finished.output).await;
    assert_eq!(log.text(Stream::Stdout).lines().count(), 1000);
    worker.stop().await;
}

#[tokio::test]
async fn p15_output_beyond_the_bound_is_counted_and_the_verdict_stays() {
    let mut fleet = Fleet::new().await;
    fleet.output_bytes_max = 4096;
    let (worker, _) = fleet.started().await;
    for (step, output_max) in [("a", None), ("b", Some(200_000))] {
        let mut job = fleet.job(step, "head -c 1000000 /dev/zero");
        job.spec.output_max = output_max;
        let finished = fleet.carry_out(&job).await;
        assert_eq!(finished.outcome, Outcome::Passed);
        let log = fleet.log(&claim(&job), Offsets::default(), finished.output).await;
        let bound = output_max.unwrap_or(4096);
        assert_eq!(log.text(Stream::Stdout).len() as u64, bound);
        let missing = 1_000_000 - bound;
        let marker = log.text(Stream::Stderr);
        assert!(marker.contains(&format!("{missing} bytes of stdout")), "{marker}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn p15_no_more_than_the_window_is_on_its_way_until_something_is_stored() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "head -c 20000000 /dev/zero; echo end >&2");
    let finished = fleet.carry_out(&job).await;
    let (mut end, mut stored) = (Offsets::default(), Offsets::default());
    while end != finished.output {
        // What is sent without an answer: at least the window, which a batch may pass.
        while end.total() < (stored.total() + WINDOW_BYTES).min(finished.output.total()) {
            for run in fleet.output().await.runs {
                *end.of_mut(run.stream) = run.end();
            }
        }
        assert!(end.total() <= stored.total() + WINDOW_BYTES + 1024 * 1024, "{end:?} of {stored:?}");
        // In steps: that more comes is the answer's doing.
        stored.stdout = end.stdout.min(stored.stdout + 5_000_000);
        stored.stderr = end.stderr;
        fleet.control(&worker, Control::Stored { claim: claim(&job), stored }).await;
    }
    worker.stop().await;
}

/// At 8 MiB/s, in a window that is shared: what one of them has on its way is what the others' lines wait behind.
#[tokio::test]
async fn p15_beside_others_a_step_has_less_on_its_way_and_is_sent_at_a_pace() {
    let mut fleet = Fleet::new().await;
    fleet.slots = 2;
    let (worker, _) = fleet.started().await;
    fleet.running(&fleet.job("quiet", "sleep 1000")).await;
    let job = fleet.job("noisy", "head -c 20000000 /dev/zero");
    let finished = fleet.carry_out(&job).await;
    let share = window_bytes(2);
    let (mut end, mut stored) = (0, 0);
    let began = Instant::now();
    while end < finished.output.stdout {
        while end < (stored + share).min(finished.output.stdout) {
            end = fleet.output().await.runs.last().unwrap().end();
        }
        if stored == 0 {
            // At its pace three MiB more would come, if the window let them.
            fleet.later(20).await;
            while let Some(more) = fleet.output_here().await {
                end = more.runs.last().unwrap().end();
            }
        }
        assert!(end <= stored + share + WINDOW_BYTES_MIN, "{end} of {stored}");
        stored = end;
        let stored = Offsets { stdout: stored, stderr: 0 };
        fleet.control(&worker, Control::Stored { claim: claim(&job), stored }).await;
    }
    // Some of it was on its way before the first was read here: a share of the window at most.
    let least = (finished.output.stdout - share) as f64 / (8.0 * 1024.0 * 1024.0);
    assert!(began.elapsed().as_secs_f64() >= least, "{:?} instead of {least} s", began.elapsed());
    worker.stop().await;
}

/// What was sent is lost with its queue, say: then nobody asks for it, and a window that is shut would stay so.
#[tokio::test]
async fn p15_what_is_never_answered_is_sent_again() {
    let mut fleet = Fleet::with_lease(Duration::from_millis(200)).await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "head -c 20000000 /dev/zero");
    let finished = fleet.carry_out(&job).await;
    let mut sent = 0;
    while sent < WINDOW_BYTES {
        sent = fleet.output().await.runs.last().unwrap().end();
    }
    // Not at once: whoever is there has a lease's time to answer.
    let again = loop {
        let runs = fleet.output().await.runs;
        if runs[0].offset < sent {
            break runs;
        }
        sent = runs.last().unwrap().end();
    };
    assert_eq!(again[0].offset, 0);
    assert!(again.last().unwrap().end() < 1_000_000, "some of it: nobody may be there");
    let stored = Offsets { stdout: again.last().unwrap().end(), stderr: 0 };
    fleet.control(&worker, Control::Resend { claim: claim(&job), stored }).await;
    fleet.control(&worker, Control::Stored { claim: claim(&job), stored: finished.output }).await;
    worker.stop().await;
}

/// The places that the sender remembers are further apart than what it reads at once.
#[tokio::test]
async fn p15_what_is_never_answered_is_sent_again_from_wherever_it_is_stored() {
    let mut fleet = Fleet::with_lease(Duration::from_millis(200)).await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "head -c 20000000 /dev/zero");
    fleet.carry_out(&job).await;
    let mut sent = 0;
    for stdout in [700_000, 1_400_000, 2_100_000, 2_800_000] {
        let stored = Offsets { stdout, stderr: 0 };
        fleet.control(&worker, Control::Stored { claim: claim(&job), stored }).await;
        loop {
            let runs = fleet.output().await.runs;
            if runs[0].offset == stdout && sent > stdout {
                break;
            }
            sent = sent.max(runs.last().unwrap().end());
        }
    }
    worker.stop().await;
}

#[tokio::test]
async fn p15_a_step_that_waits_for_room_asks_for_less_and_less_while_nobody_answers() {
    let mut fleet = Fleet::new().await;
    fleet.spools_bytes_max = Some(0);
    let (worker, _) = fleet.started().await;
    let noisy = fleet.job("a", "head -c 30000000 /dev/zero");
    fleet.running(&noisy).await;
    fleet.heartbeat_where(|hb| hb.full == [claim(&noisy)]).await;
    let (mut sent, mut asked, mut read) = (0, Vec::new(), 0);
    while asked.len() < 2 {
        let runs = fleet.output().await.runs;
        read += 1;
        if runs[0].offset < sent {
            assert_eq!(runs[0].offset, 0, "one message each time");
            asked.push(worker.tap.published(".output", read));
        }
        sent = sent.max(runs.last().unwrap().end());
    }
    // One second until the first, and then two.
    let between = asked[1] - asked[0];
    assert!(between >= Duration::from_secs(2), "{between:?}");
    worker.stop().await;
}

/// A reader that is far behind and one that is far ahead: what is given back is not read any more.
#[tokio::test]
async fn p15_what_is_stored_meanwhile_is_not_sent_again() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "head -c 27000000 /dev/zero");
    fleet.running(&job).await;
    let mut end = Offsets::default();
    while end.stdout < 20_000_000 {
        end.stdout = fleet.output().await.runs.last().unwrap().end();
        if end.stdout < 12_500_000 {
            fleet.control(&worker, Control::Stored { claim: claim(&job), stored: end }).await;
        }
    }
    // Sent again from the beginning, and before that has arrived all of it is stored, and given back.
    worker.tap.set(".output", Mode::Hold);
    let first = Offsets { stdout: 1, stderr: 0 };
    fleet.control(&worker, Control::Resend { claim: claim(&job), stored: first }).await;
    fleet.control(&worker, Control::Stored { claim: claim(&job), stored: end }).await;
    worker.tap.set(".output", Mode::Pass);
    let finished = fleet.finished().await;
    let log = fleet.log(&claim(&job), end, finished.output).await;
    assert_eq!(log.text(Stream::Stdout).len() as u64, finished.output.stdout - end.stdout);
    worker.stop().await;
}

#[tokio::test]
async fn p15_a_step_that_prints_faster_than_it_is_stored_waits_and_nothing_is_missing() {
    let mut fleet = Fleet::new().await;
    fleet.spool_bytes_max = 24 << 20;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "head -c 60000000 /dev/zero");
    fleet.running(&job).await;
    let spool = fleet.state().join(format!("spool/{}-{}.log", job.execution.to_hex(), job.attempt));
    let mut end = Offsets::default();
    while end.stdout < 60_000_000 {
        for run in fleet.output().await.runs {
            assert_eq!(run.offset, end.of(run.stream), "P14: contiguous");
            *end.of_mut(run.stream) = run.end();
        }
        // Zeros that take room: a hole has no blocks.
        let held = std::fs::metadata(&spool).unwrap().blocks() * 512;
        assert!(held < 27 << 20, "{held} bytes are held");
        fleet.control(&worker, Control::Stored { claim: claim(&job), stored: end }).await;
    }
    let finished = fleet.finished().await;
    assert_eq!((finished.outcome, finished.output), (Outcome::Passed, end));
    worker.stop().await;
}

/// What was stored and given back before a worker died is neither asked of the dead one's spool nor sent again.
#[tokio::test]
async fn p15_a_restarted_worker_goes_on_behind_what_it_gave_back() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    let job = fleet.job("a", "head -c 30000000 /dev/zero; await end; echo end");
    fleet.running(&job).await;
    let mut stored = Offsets::default();
    while stored.stdout < 29_900_000 {
        for run in fleet.output().await.runs {
            *stored.of_mut(run.stream) = run.end();
        }
        fleet.control(&worker, Control::Stored { claim: claim(&job), stored }).await;
    }
    let spool = fleet.state().join(format!("spool/{}-{}.log", job.execution.to_hex(), job.attempt));
    fleet.heartbeat_where(|_| std::fs::metadata(&spool).is_ok_and(|spool| spool.blocks() * 512 < 20_000_000)).await;
    worker.crash().await;
    let (worker, _) = fleet.started().await;
    fleet.engine.raise("end");
    let finished = fleet.finished().await;
    assert_eq!((finished.outcome, finished.output.stdout), (Outcome::Passed, 30_000_004));
    // All that is left on the disk, which is less than half of it.
    let first = loop {
        let message = fleet.output().await;
        if message.incarnation == worker.incarnation {
            break message.runs;
        }
    };
    assert!(first[0].offset >= 16_000_000, "{}", first[0].offset);
    // What it hears to be stored is skipped on the way.
    let stored = Offsets { stdout: 29_000_000, stderr: 0 };
    fleet.control(&worker, Control::Stored { claim: claim(&job), stored }).await;
    let log = fleet.log(&claim(&job), stored, finished.output).await;
    assert!(log.text(Stream::Stdout).ends_with("\0end\n"));
    worker.stop().await;
}

#[tokio::test]
async fn p16_output_is_on_the_disk_before_it_is_published() {
    let mut fleet = Fleet::new().await;
    let (worker, _) = fleet.started().await;
    worker.tap.set(".output", Mode::Hold);
    let job = fleet.job("a", "echo a-line; sleep 1000");
    fleet.dispatch(&job).await;
    worker.tap.holds("a-line").await;
    let name = format!("spool/{}-{}.log", job.execution.to_hex(), job.attempt);
    let spooled = std::fs::read(fleet.state().join(name)).unwrap();
    assert!(String::from_utf8_lossy(&spooled).contains("a-line"));
    worker.crash().await;
}

/// P15: the disk is shared. Who finds no room waits, and is told to; who prints little does not notice.
#[tokio::test]
async fn p15_steps_share_the_disk_and_only_who_finds_no_room_waits() {
    const MIB: u64 = 1024 * 1024;
    let mut fleet = Fleet::new().await;
    fleet.slots = 2;
    fleet.spools_bytes_max = Some(4 * MIB);
    let (worker, _) = fleet.started().await;
    let noisy = fleet.job("a", "head -c 30000000 /dev/zero");
    fleet.running(&noisy).await;
    fleet.heartbeat_where(|hb| hb.full == [claim(&noisy)]).await;
    let held = fleet.spool(&claim(&noisy)).len() as u64;
    assert!((11 * MIB..=12 * MIB).contains(&held), "what is its own, and what is shared: {held}");
    let quiet = fleet.job("b", "echo quiet");
    assert_eq!(fleet.carry_out(&quiet).await.outcome, Outcome::Passed);
    // It goes on as what it wrote is stored, and nothing of it is missing.
    let mut stored = Offsets::default();
    while stored.stdout < 30_000_000 {
        let message = fleet.output().await;
        if message.claim == claim(&noisy) {
            let end = message.runs.last().unwrap().end();
            stored.stdout = stored.stdout.max(end);
            fleet.control(&worker, Control::Stored { claim: claim(&noisy), stored }).await;
        }
    }
    let finished = fleet.finished().await;
    assert_eq!((finished.outcome, finished.output), (Outcome::Passed, stored));
    worker.stop().await;
}

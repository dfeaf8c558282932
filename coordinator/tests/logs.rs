//! Logs as they come back: every byte, any line, from wherever a reader was.

#![allow(clippy::unwrap_used)] // a test's helper that fails has failed its test

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use longshore_coordinator::store::Store as _;
use longshore_coordinator::store::sqlite::SqliteStore;
use longshore_protocol::control::Control;
use longshore_protocol::output::{Ending, Line, Offsets, Stream};
use longshore_protocol::{Outcome, RunId};
use support::{Fleet, ONE_STEP, ScriptedWorker, bytes, claim, line};

/// Says these lines and passes, and waits until all of it is stored.
async fn say(fleet: &Fleet, worker: &mut ScriptedWorker, lines: &[Line]) -> RunId {
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    worker.started(&job).await;
    for lines in lines.chunks(1_000) {
        worker.output(&claim(&job), lines.to_vec()).await;
    }
    let mut output = Offsets::default();
    for line in lines {
        *output.of_mut(line.stream) = line.end();
    }
    worker.finished(&job, Outcome::Passed, output).await;
    worker.told(|control| matches!(control, Control::Settled { .. })).await;
    run
}

#[tokio::test]
async fn p1_logs_of_any_bytes_come_back_as_they_were() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let texts: [&[u8]; 6] =
        [b"\xff\xfe\x00", b"", "caf\u{e9} \u{2603}".as_bytes(), b"half \xe2\x98", b"cr\r", b"\x1b[31mred"];
    let mut lines = Vec::new();
    let mut offset = 0;
    for text in texts {
        let line = bytes(offset, text);
        offset = line.end();
        lines.push(line);
    }
    lines.push(Line { stream: Stream::Stderr, offset: 0, ..bytes(0, b"other stream") });
    lines.push(Line { ending: Ending::Split, ..bytes(offset, b"a piece") });
    lines.push(Line { ending: Ending::Eof, ..bytes(offset + 7, b" and its end") });
    let run = say(&fleet, &mut worker, &lines).await;
    let mut expected = texts.join(&b'\n');
    expected.extend(b"\nother stream\na piece and its end");
    assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs?step=build")).await, expected);
    let events = fleet.events(&format!("/v1/runs/{run}/logs?step=build"), None).await.rest().await;
    let data: Vec<Vec<u8>> = events[..texts.len()]
        .iter()
        .map(|(_, event)| match event["text"].as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => BASE64.decode(event["base64"].as_str().unwrap()).unwrap(),
        })
        .collect();
    assert_eq!(data, texts);
    assert_eq!((events[6].1["n"].as_u64(), events[6].1["stream"].as_str()), (Some(7), Some("stderr")));
    assert_eq!(events.last().unwrap().1["type"], "end");
}

/// 4 MiB of lines: most of it sealed, and any line, also the last, opens from wherever it is. What is lost is marked.
#[tokio::test]
async fn a_long_log_is_sealed_in_chunks_any_line_opens_and_a_lost_chunk_is_marked() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let mut lines = Vec::new();
    let mut offset = 0;
    for n in 1..=40_000 {
        let line = line(offset, &format!("line {n:06} {}", "x".repeat(90)));
        offset = line.end();
        lines.push(line);
    }
    let job = {
        let run = fleet.submitted(ONE_STEP).await;
        let job = worker.next_job().await;
        assert_eq!(job.run, run);
        job
    };
    worker.started(&job).await;
    for lines in lines.chunks(1_000) {
        worker.output(&claim(&job), lines.to_vec()).await;
    }
    worker.finished(&job, Outcome::Passed, Offsets { stdout: offset, stderr: 0 }).await;
    worker.told(|control| matches!(control, Control::Settled { .. })).await;
    let (run, store) = (job.run, SqliteStore::open(&fleet.file()).await.unwrap());
    let chunks = support::patiently("the sealing", async {
        loop {
            let chunks = store.chunks(job.execution, job.attempt).await.unwrap();
            if chunks.iter().map(|(_, lines)| lines).sum::<u64>() > 30_000 {
                break chunks;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(chunks.len() >= 3, "{chunks:?}");
    assert_eq!(chunks[0].0, 1);
    assert!(chunks.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{chunks:?}");
    let first_of_second = chunks[1].0;
    for n in [1, 2, first_of_second - 1, first_of_second, 20_000, 39_999, 40_000] {
        let mut events = fleet.events(&format!("/v1/runs/{run}/logs?step=build&from={n}"), None).await;
        let (_, event) = events.next().await.unwrap();
        assert_eq!(event["n"], n);
        assert!(event["text"].as_str().unwrap().starts_with(&format!("line {n:06} ")), "{event}");
    }
    let tail = fleet.text(&format!("/v1/runs/{run}/logs?step=build&tail=2")).await;
    let tail = String::from_utf8(tail).unwrap();
    assert_eq!(tail.lines().map(|line| &line[..11]).collect::<Vec<_>>(), ["line 039999", "line 040000"]);
    let whole = fleet.text(&format!("/v1/runs/{run}/logs?step=build")).await;
    let expected: Vec<u8> = lines.iter().flat_map(|line| [&line.data.0[..], b"\n"].concat()).collect();
    assert!(whole == expected, "{} bytes, not {}", whole.len(), expected.len());
    let beyond = fleet.events(&format!("/v1/runs/{run}/logs?step=build&from=40001"), None).await.rest().await;
    assert_eq!(beyond.len(), 1, "{beyond:?}");

    // What they were stored in is lost: one chunk gone, the next one cut off.
    let (second, third, end) = (chunks[1].0, chunks[2].0, chunks[2].0 + chunks[2].1);
    let file = |first: u64| {
        let name = format!("{}-{}-{first}.zst", job.execution.to_hex(), job.attempt);
        fleet.blob_dir().join("logs").join(run.to_string()).join(name)
    };
    std::fs::remove_file(file(second)).unwrap();
    let third_file = std::fs::File::options().write(true).open(file(third)).unwrap();
    third_file.set_len(third_file.metadata().unwrap().len() - 1).unwrap();
    let events = fleet.events(&format!("/v1/runs/{run}/logs?step=build&follow=true"), None).await.rest().await;
    let (mut next, mut lost) = (1, 0);
    for (_, event) in &events {
        match event["type"].as_str().unwrap() {
            "line" => {
                assert_eq!(event["n"], next);
                next += 1;
            }
            "gap" => {
                assert_eq!(
                    (event["gap"]["kind"].as_str(), event["gap"]["first"].as_u64()),
                    (Some("lines"), Some(next))
                );
                let count = event["gap"]["count"].as_u64().unwrap();
                (next, lost) = (next + count, lost + count);
            }
            _ => {}
        }
    }
    assert_eq!((next, lost), (40_001, end - second), "each line is told, or told as lost");
    // A message of 1,000 lines is a row, and a page has sixteen.
    let gaps = events.iter().filter(|(_, event)| event["type"] == "gap").count();
    assert!(gaps <= 3, "those of a page are told together, in {gaps}");
    assert_eq!(events.last().unwrap().1["type"], "end");
    let from = fleet.events(&format!("/v1/runs/{run}/logs?step=build&from={}", second + 1), None).await.next().await;
    let text = from.unwrap().1["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with(&format!("… lines {} to ", second + 1)), "{text}");
    // Where no log is there at all, a share is not mounted: the stream is cut, and whoever comes again has all of it.
    let logs = fleet.blob_dir().join("logs");
    std::fs::rename(&logs, fleet.blob_dir().join("away")).unwrap();
    let cut = fleet.events(&format!("/v1/runs/{run}/logs?step=build"), None).await.rest().await;
    assert!(cut.is_empty(), "{cut:?}");
}

/// A row holds more lines than a reader takes at once, and it can be read from the middle of one.
#[tokio::test]
async fn a_row_of_very_many_lines_is_read_in_pages_from_anywhere() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let job = {
        fleet.submitted(ONE_STEP).await;
        worker.next_job().await
    };
    worker.started(&job).await;
    // One message, and so one row: 30,000 lines of two bytes and an end without a newline.
    let mut lines: Vec<Line> = (0..30_000).map(|n| line(2 * n, &(n % 10).to_string())).collect();
    lines.push(Line { ending: Ending::Eof, ..line(60_000, "end") });
    worker.output(&claim(&job), lines).await;
    worker.finished(&job, Outcome::Passed, Offsets { stdout: 60_003, stderr: 0 }).await;
    worker.told(|control| matches!(control, Control::Settled { .. })).await;
    let logs = format!("/v1/runs/{}/logs?step=build", job.run);
    let whole = fleet.text(&logs).await;
    let expected = "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n".repeat(3_000) + "end";
    assert!(whole == expected.as_bytes(), "{} bytes", whole.len());
    for n in [1, 8_192, 8_193, 20_000, 30_000, 30_001] {
        let from = fleet.text(&format!("{logs}&from={n}")).await;
        assert!(from == expected.as_bytes()[2 * (n - 1)..], "from {n}: {} bytes", from.len());
        let tail = fleet.text(&format!("{logs}&tail={}", 30_001 - (n - 1))).await;
        assert!(tail == from, "the last {}: {} bytes", 30_001 - (n - 1), tail.len());
    }
    let events = fleet.events(&logs, None).await.rest().await;
    let numbers: Vec<u64> = events.iter().filter_map(|(_, event)| event["n"].as_u64()).collect();
    assert!(numbers == (1..=30_001).collect::<Vec<_>>(), "{} lines", numbers.len());
}

/// Two steps at once, the reader cut off after every line: the pieces are the whole, once.
#[tokio::test]
async fn a_follow_of_several_steps_resumes_exactly() {
    let fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet
        .submitted("name: two\nsteps:\n  - {name: a, image: busybox, run: x}\n  - {name: b, image: busybox, run: x}\n")
        .await;
    let jobs = [worker.next_job().await, worker.next_job().await];
    for job in &jobs {
        worker.started(job).await;
    }
    let path = format!("/v1/runs/{run}/logs?follow=true");
    let mut last: Option<String> = None;
    let mut seen = Vec::new();
    let mut offsets = [0, 0];
    for n in 0..10_usize {
        let which = n % 2;
        let lines = vec![line(offsets[which], &format!("{n} first")), line(offsets[which] + 8, &format!("{n} second"))];
        offsets[which] = lines[1].end();
        worker.output(&claim(&jobs[which]), lines).await;
        // One line, and the connection is gone; the other line is still to come.
        for _ in 0..2 {
            let mut events = fleet.events(&path, last.as_deref()).await;
            let (id, event) = events.next().await.unwrap();
            seen.push((event["step"].as_str().unwrap().to_owned(), event["text"].as_str().unwrap().to_owned()));
            last = Some(id);
        }
    }
    for (which, job) in jobs.iter().enumerate() {
        worker.finished(job, Outcome::Passed, Offsets { stdout: offsets[which], stderr: 0 }).await;
    }
    let end = fleet.events(&path, last.as_deref()).await.rest().await;
    assert_eq!(end.len(), 1, "{end:?}");
    assert_eq!(end[0].1["type"], "end");
    let expected: Vec<(String, String)> = (0..10)
        .flat_map(|n| {
            let step = jobs[n % 2].step.to_string();
            [(step.clone(), format!("{n} first")), (step, format!("{n} second"))]
        })
        .collect();
    assert_eq!(seen, expected);
    // All at once it is the same, in the same order.
    let whole = fleet.events(&path, None).await.rest().await;
    assert_eq!(whole.len(), 21);
    let tail = fleet.text(&format!("/v1/runs/{run}/logs?tail=1")).await;
    assert_eq!(String::from_utf8(tail).unwrap(), format!("{} | 9 second\n", jobs[1].step));
}

#[tokio::test]
async fn a_log_survives_the_coordinator_and_goes_on_where_it_was() {
    let mut fleet = Fleet::start().await;
    let mut worker = ScriptedWorker::join(&fleet, "w1").await;
    let run = fleet.submitted(ONE_STEP).await;
    let job = worker.next_job().await;
    worker.started(&job).await;
    worker.output(&claim(&job), vec![line(0, "before")]).await;
    let path = format!("/v1/runs/{run}/logs?step=build&follow=true");
    let mut events = fleet.events(&path, None).await;
    let (id, event) = events.next().await.unwrap();
    assert_eq!(event["text"], "before");
    fleet.crash().await;
    assert!(events.next().await.is_none(), "the stream ends with its process");
    fleet.restart().await;
    worker.output(&claim(&job), vec![line(0, "before"), line(7, "after")]).await;
    let mut events = fleet.events(&path, Some(&id)).await;
    let (_, event) = events.next().await.unwrap();
    assert_eq!((event["text"].as_str(), event["n"].as_u64()), (Some("after"), Some(2)));
    worker.finished(&job, Outcome::Passed, Offsets { stdout: 13, stderr: 0 }).await;
    assert_eq!(events.next().await.unwrap().1["type"], "end");
    assert_eq!(fleet.text(&format!("/v1/runs/{run}/logs?step=build")).await, b"before\nafter\n");
}

//! `longshore run` beside a real Docker Engine.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod harness;

use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::tap::Tap;
use harness::{BUSYBOX, Place, Started, code, done, objects, on_engine, run_id, services, stderr, stdout};
use longshore_protocol::{RunId, SnapshotId};
use longshore_worker::engine::Engine;
use rustix::process::Signal;

/// A pipeline of steps on busybox: name, keys beside it, script.
fn pipeline(steps: &[(&str, &str, &str)]) -> String {
    let mut text = "name: t\nsteps:\n".to_owned();
    for (name, keys, script) in steps {
        let script = script.replace('\n', "\n      ");
        let base = if keys.contains("from:") { String::new() } else { format!("    image: {BUSYBOX}\n") };
        let _ = write!(text, "  - name: {name}\n{base}    {keys}\n    run: |\n      {script}\n");
    }
    text
}

/// Says that it runs, then goes on for longer than any test.
const LONG: &str = "trap 'exit 0' TERM\necho up\nwhile :; do sleep 1 & wait $!; done";

/// The same, and TERM does not end it.
const DEAF: &str = "trap '' TERM\necho up\nwhile :; do sleep 1; done";

#[test]
fn a_run_passes_and_can_be_looked_at_afterwards() {
    let place = Place::new();
    place.file("src/words", "from the source\n");
    let text = pipeline(&[
        ("greet", "sources: [{path: ./src, target: /in}]", "cat /in/words > /out\necho hello"),
        ("read", "from: greet", "cat /out\nprintf 'no newline'"),
    ]);
    place.file("p.yaml", &text);
    let output = done(place.with_docker(&["run", "p.yaml"]));
    let printed = stdout(&output);
    assert_eq!(code(&output), 0, "{printed}{}", stderr(&output));
    let run = run_id(printed.lines().next().unwrap());
    // The end of a step stands behind its last line and before the first of its child's.
    assert!(printed.contains("greet | hello\n✓ greet  "), "{printed}");
    assert!(printed.contains("read | from the source\nread | no newline\n✓ read  "), "{printed}");
    let last = printed.lines().last().unwrap();
    assert!(last.starts_with(&format!("{run} passed in ")), "{last}");
    assert!(place.containers().is_empty() && place.snapshots().is_empty() && place.locks().is_empty());

    // Without an Engine, without a server.
    let listed = stdout(&done(place.longshore(&["ls"])));
    assert!(listed.lines().nth(1).unwrap().starts_with(&run) && listed.contains("passed"), "{listed}");
    let shown = stdout(&done(place.longshore(&["show", &run[..13]])));
    assert!(shown.contains("passed in") && shown.contains("✓ passed"), "{shown}");
    let logs = stdout(&done(place.longshore(&["logs"])));
    assert_eq!(logs, "greet | hello\nread | from the source\nread | no newline\n");
    // Of one step the very bytes.
    let one = done(place.longshore(&["logs", "last", "read"]));
    assert_eq!(stdout(&one), "from the source\nno newline");
    let tail = stdout(&done(place.longshore(&["logs", &run, "read", "--tail", "1", "--follow"])));
    assert_eq!(tail, "no newline");
    let lines = objects(&stdout(&done(place.longshore(&["logs", "last", "--output", "json"]))));
    let texts: Vec<_> = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["hello", "from the source", "no newline"]);
    let replayed = done(place.longshore(&["replay", &run[..13]]));
    assert_eq!(code(&replayed), 0, "{}{}", stdout(&replayed), stderr(&replayed));
    assert!(stdout(&replayed).starts_with(&format!("{run}  t  same  ")), "{}", stdout(&replayed));
    assert_eq!(code(&done(place.longshore(&["replay", "0123"]))), 2);
    let unknown = done(place.longshore(&["logs", "last", "reed"]));
    assert_eq!(code(&unknown), 2, "{}", stderr(&unknown));
    assert!(stderr(&unknown).contains("its steps are"), "{}", stderr(&unknown));
    assert!(stderr(&unknown).contains("read"), "{}", stderr(&unknown));
}

#[test]
fn a_failed_step_is_exit_code_1_with_its_last_words() {
    let place = Place::new();
    let text = pipeline(&[("bad", "timeout: 1m", "echo why\nexit 7"), ("after", "from: bad", "echo never")]);
    place.file("p.yaml", &text);
    let output = done(place.with_docker(&["run", "p.yaml"]));
    let printed = stdout(&output);
    assert_eq!(code(&output), 1, "{printed}{}", stderr(&output));
    assert!(printed.contains("✗ bad  failed{7}"), "{printed}");
    assert!(printed.contains("\n✗ bad: failed{7}\n    why\n"), "{printed}");
    assert!(printed.contains("skipped because of bad"), "{printed}");
    let run = run_id(printed.lines().next().unwrap());
    assert!(printed.contains(&format!("longshore logs {run} 'bad'")), "{printed}");
    assert!(!printed.contains("never"), "{printed}");
    assert!(place.containers().is_empty());
}

#[test]
fn every_line_of_json_parses_and_the_last_one_is_the_result() {
    let place = Place::new();
    let text = pipeline(&[("odd", "timeout: 1m", "printf 'bytes \\377\\n'\necho text\nexit 3")]);
    place.file("p.yaml", &text);
    let output = done(place.with_docker(&["--output", "json", "run", "p.yaml", "--name", "renamed"]));
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    let all = objects(&stdout(&output));
    assert_eq!(all[0]["type"], "run");
    assert_eq!(all[0]["name"], "renamed");
    let lines: Vec<_> = all.iter().filter(|object| object["type"] == "line").collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["base64"].is_string() && lines[1]["text"] == "text", "{lines:?}");
    let last = all.last().unwrap();
    assert_eq!((&last["type"], &last["exit_code"], &last["outcome"]), (&"result".into(), &1.into(), &"failed".into()));
    assert_eq!(last["steps"][0]["outcome"]["exit"], 3);
    let listed = objects(&stdout(&done(place.longshore(&["--output", "json", "ls"]))));
    assert_eq!(listed[0]["run"], last["run"]);
    assert_eq!(listed[0]["interrupted"], false);
    let shown = objects(&stdout(&done(place.longshore(&["--output", "json", "show"]))));
    assert_eq!(shown[0]["steps"], last["steps"]);
    // The bytes come back as they were.
    assert_eq!(done(place.longshore(&["logs", "last", "odd"])).stdout, b"bytes \xff\ntext\n");
}

#[test]
fn ctrl_c_cancels_the_run_and_removes_its_containers() {
    let place = Place::new();
    place.file("p.yaml", &pipeline(&[("long", "timeout: 10m", LONG)]));
    let mut started = Started::new(place.with_docker(&["run", "p.yaml"]));
    started.until("long | up");
    assert_eq!(place.containers().len(), 1);
    started.signal(Signal::INT);
    let (status, printed, errors) = started.end();
    assert_eq!(status.code(), Some(130), "{printed}{errors}");
    assert!(printed.lines().last().unwrap().contains(" cancelled in "), "{printed}");
    assert!(errors.contains("Ctrl-C again"), "{errors}");
    assert!(place.containers().is_empty() && place.locks().is_empty());
}

#[test]
fn a_second_ctrl_c_kills_what_ignores_the_first() {
    let place = Place::new();
    place.file("p.yaml", &pipeline(&[("deaf", "timeout: 10m", DEAF)]));
    let mut started = Started::new(place.with_docker(&["run", "p.yaml"]));
    started.until("deaf | up");
    started.signal(Signal::INT);
    // The first one has been taken when the second is sent: two at once would be one.
    let mut errors = std::io::BufReader::new(started.child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
    assert!(line.contains("Ctrl-C again"), "{line}");
    started.signal(Signal::INT);
    let status = started.child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(place.containers().is_empty());
}

#[test]
fn a_third_ctrl_c_leaves_at_once_even_if_the_engine_never_answers() {
    let place = Place::new();
    // One that ends when it is told to would settle the run before the second one: its supervisor needs no Engine.
    place.file("p.yaml", &pipeline(&[("deaf", "timeout: 10m", DEAF)]));
    let engine = Tap::open(&place.path("engine.sock"), &services::env("LONGSHORE_TEST_DOCKER_1"));
    let mut command = place.longshore(&["run", "p.yaml"]);
    command.env("DOCKER_HOST", format!("unix://{}", place.path("engine.sock").display()));
    let mut started = Started::new(command);
    started.until("deaf | up");
    engine.close();
    let mut errors = std::io::BufReader::new(started.child.stderr.take().unwrap()).lines();
    for said in ["Ctrl-C again", "killing", "leaving"] {
        started.signal(Signal::INT);
        // Taken, before the next one is sent.
        let lines: Vec<_> = errors.by_ref().map(Result::unwrap).take_while(|line| !line.contains(said)).collect();
        assert!(lines.iter().all(|line| !line.contains("longshore: ")), "{said:?} was to come: {lines:?}");
    }
    assert_eq!(started.child.wait().unwrap().code(), Some(130));
    assert_eq!((place.containers().len(), place.locks().len()), (1, 1));
    place.file("short.yaml", &pipeline(&[("short", "timeout: 1m", "true")]));
    assert_eq!(code(&done(place.with_docker(&["run", "short.yaml"]))), 0);
    assert!(place.containers().is_empty() && place.locks().is_empty());
}

#[test]
fn what_a_killed_run_left_is_swept_by_the_next_one_and_nobody_elses() {
    let (ours, others) = (Place::new(), Place::new());
    for place in [&ours, &others] {
        place.file("long.yaml", &pipeline(&[("first", "timeout: 1m", "true"), ("long", "from: first", LONG)]));
        place.file("short.yaml", &pipeline(&[("short", "timeout: 1m", "true")]));
    }
    let mut killed = Started::new(ours.with_docker(&["run", "long.yaml"]));
    let mut living = Started::new(ours.with_docker(&["run", "long.yaml"]));
    let mut foreign = Started::new(others.with_docker(&["run", "long.yaml"]));
    let killed_run = run_id(&killed.until("2 steps"));
    let living_run = run_id(&living.until("2 steps"));
    for started in [&mut killed, &mut living, &mut foreign] {
        started.until("long | up");
    }
    killed.signal(Signal::KILL);
    killed.child.wait().unwrap();
    assert_eq!((ours.containers().len(), others.containers().len()), (2, 1));
    let shown = stdout(&done(ours.longshore(&["ls"])));
    let line = |run: &str| shown.lines().find(|line| line.starts_with(run)).unwrap().to_owned();
    assert!(line(&killed_run).contains("interrupted"), "{shown}");
    assert!(line(&living_run).contains("running"), "{shown}");

    let next = done(ours.with_docker(&["run", "short.yaml"]));
    assert_eq!(code(&next), 0, "{}{}", stdout(&next), stderr(&next));
    let left = ours.containers();
    let lock = |run: &str| run.replace('-', "");
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].owner().as_str().ends_with(&lock(&living_run)), "{left:?}");
    assert!(ours.snapshots().iter().all(|snapshot| snapshot.contains(&lock(&living_run))));
    assert_eq!(ours.locks().into_iter().collect::<Vec<_>>(), [lock(&living_run)]);
    assert_eq!(others.containers().len(), 1);
    // It stays what it was; only its leftovers are gone.
    assert!(stdout(&done(ours.longshore(&["show", &killed_run]))).contains("interrupted"));

    for started in [living, foreign] {
        started.signal(Signal::INT);
        let (status, printed, errors) = started.end();
        assert_eq!(status.code(), Some(130), "{printed}{errors}");
    }
    assert!(ours.containers().is_empty() && others.containers().is_empty());
}

#[test]
fn two_runs_at_once_do_not_meet() {
    let place = Place::new();
    for word in ["one", "two"] {
        let text =
            pipeline(&[("same", "timeout: 1m", &format!("echo {word} > /word")), ("read", "from: same", "cat /word")]);
        place.file(&format!("{word}.yaml"), &text);
    }
    let started = ["one", "two"].map(|word| (word, Started::new(place.with_docker(&["run", &format!("{word}.yaml")]))));
    for (word, started) in started {
        let (status, printed, errors) = started.end();
        assert_eq!(status.code(), Some(0), "{printed}{errors}");
        assert!(printed.contains(&format!("read | {word}\n")), "{printed}");
    }
    assert_eq!(stdout(&done(place.longshore(&["ls"]))).lines().count(), 3);
}

#[test]
fn a_second_run_hits_the_cache() {
    let place = Place::new();
    let key = RunId::new().to_string();
    let text = pipeline(&[
        ("slow", &format!("cache: {{key: {key}}}"), "echo built\necho result > /result"),
        ("use", "from: slow", "cat /result"),
    ]);
    place.file("p.yaml", &text);
    let first = stdout(&done(place.with_docker(&["run", "p.yaml"])));
    assert!(first.contains("slow | built") && !first.contains("cached"), "{first}");
    let second = stdout(&done(place.with_docker(&["run", "p.yaml"])));
    assert!(second.contains("✓ slow  cached") && second.contains("use | result"), "{second}");
    assert!(!second.contains("slow | built"), "{second}");
    on_engine(async |engine| engine.remove_snapshot(&SnapshotId::cached("default", &key)).await.unwrap());
}

#[test]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let place = Place::new();
    let chatty = "trap 'exit 0' TERM\nwhile :; do echo line; sleep 1 & wait $!; done";
    place.file("p.yaml", &pipeline(&[("chatty", "timeout: 10m", chatty)]));
    let mut child =
        place.with_docker(&["run", "p.yaml"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap());
    while !first.contains("chatty | line") {
        assert_ne!(std::io::BufRead::read_line(&mut lines, &mut first).unwrap(), 0, "it ended: {first}");
    }
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 130, "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    assert!(place.containers().is_empty());
}

#[test]
fn a_run_whose_output_cannot_be_written_is_cancelled_and_says_so() {
    let place = Place::new();
    place.file("p.yaml", &pipeline(&[("long", "timeout: 10m", LONG)]));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = place.with_docker(&["run", "p.yaml"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("the output cannot be written"), "{}", stderr(&output));
    assert!(stdout(&done(place.longshore(&["ls"]))).contains("cancelled"));
    assert!(place.containers().is_empty() && place.locks().is_empty());
}

#[test]
fn a_pipeline_can_come_from_stdin() {
    let place = Place::new();
    let mut child = place.with_docker(&["run", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text = pipeline(&[("greet", "timeout: 1m", "echo hello")]);
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(stdout(&output).contains("greet | hello"), "{}", stdout(&output));
    assert_eq!(code(&output), 0);
}

/// Its second step passes with the third attempt.
fn flaky() -> String {
    pipeline(&[
        ("build", "timeout: 1m", "echo built > /made\necho building"),
        ("test", "from: build", "cat /made\necho trying $LONGSHORE_ATTEMPT\ntest $LONGSHORE_ATTEMPT -gt 2"),
        ("after", "from: test", "cat /made"),
    ])
}

#[test]
fn a_failed_run_is_tried_again_until_it_passes_and_says_why() {
    let place = Place::new();
    place.file("p.yaml", &flaky());
    let first = done(place.with_docker(&["run", "p.yaml"]));
    assert_eq!(code(&first), 1, "{}{}", stdout(&first), stderr(&first));
    let run = run_id(stdout(&first).lines().next().unwrap());
    let shown = stdout(&done(place.longshore(&["show"])));
    assert!(shown.contains("\n✗ test: failed{1}\n    built\n    trying 1\n"), "its last words: {shown}");
    let why = stdout(&done(place.longshore(&["why", "last", "test"])));
    assert!(why.contains("it failed with exit status 1; it has no rule to try it again"), "{why}");
    assert!(why.contains("this machine's worker claimed attempt 1") && why.contains("    trying 1\n"), "{why}");
    let why = stdout(&done(place.longshore(&["why"])));
    assert!(why.starts_with("test  ✗ failed{1}\n") && !why.contains("\nafter  "), "what was skipped follows: {why}");

    // What was asked for is not there.
    let nothing = done(place.with_docker(&["retry", &run, "--only", "infra"]));
    assert_eq!(code(&nothing), 2, "{}{}", stdout(&nothing), stderr(&nothing));
    assert!(stderr(&nothing).contains("nothing to try again"), "{}", stderr(&nothing));
    assert!(place.containers().is_empty() && place.locks().is_empty());

    let second = done(place.with_docker(&["retry", &run, "--only", "failed"]));
    let printed = stdout(&second);
    assert_eq!(code(&second), 1, "{printed}{}", stderr(&second));
    assert!(printed.starts_with(&format!("t  {run}  3 steps, goes on with 2\n")), "{printed}");
    assert!(printed.contains("test | trying 2\n") && !printed.contains("trying 1"), "only what is new: {printed}");
    assert!(!printed.contains("✓ build"), "it had passed before: {printed}");
    assert!(printed.contains("↻ build  made again as build~1"), "{printed}");

    let third = done(place.with_docker(&["retry"]));
    let printed = stdout(&third);
    assert_eq!(code(&third), 0, "{printed}{}", stderr(&third));
    assert!(printed.contains("test | trying 3\n") && printed.contains("after | built\n"), "{printed}");
    assert!(printed.lines().last().unwrap().starts_with(&format!("{run} passed in ")), "{printed}");
    let passed = done(place.longshore(&["retry", &run]));
    assert_eq!(code(&passed), 2);
    assert!(stderr(&passed).contains("every step of run"), "{}", stderr(&passed));
    let shown = objects(&stdout(&done(place.longshore(&["--output", "json", "show"]))));
    assert_eq!((&shown[0]["retries"], &shown[0]["steps"][0]["attempts"].as_array().unwrap().len()), (&2.into(), &1));
    assert!(place.containers().is_empty() && place.snapshots().is_empty() && place.locks().is_empty());
}

#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let place = Place::new();
    // Long enough for what happens to it here.
    let script = "echo up $LONGSHORE_ATTEMPT\nsleep 30\necho over";
    let text = pipeline(&[("first", "timeout: 1m", "echo once"), ("long", "from: first", script)]);
    place.file("p.yaml", &text);
    let mut killed = Started::new(place.with_docker(&["run", "p.yaml"]));
    let run = run_id(&killed.until("2 steps"));
    killed.until("long | up 1");
    let busy = done(place.with_docker(&["retry", &run]));
    assert_eq!(code(&busy), 2, "{}", stdout(&busy));
    assert!(stderr(&busy).contains("is still going, in another process"), "{}", stderr(&busy));
    // That a command runs is reported apart from what it prints, and may come after it.
    let asked = Instant::now();
    while !stdout(&done(place.longshore(&["--output", "json", "show"]))).contains("\"phase\":\"running\"") {
        assert!(asked.elapsed() < Duration::from_secs(30), "its command never ran");
    }
    killed.signal(Signal::KILL);
    killed.child.wait().unwrap();
    let shown = stdout(&done(place.longshore(&["show"])));
    assert!(shown.contains("interrupted") && shown.contains(&format!("longshore retry {run}")), "{shown}");
    let why = stdout(&done(place.longshore(&["why"])));
    assert!(why.contains("its command runs at this machine's worker") && why.contains("interrupted"), "{why}");

    // P10: its container went on meanwhile, and is taken up.
    let output = done(place.with_docker(&["retry", &run]));
    let printed = stdout(&output);
    assert_eq!(code(&output), 0, "{printed}{}", stderr(&output));
    assert!(printed.contains("long | over\n") && !printed.contains("up 2"), "{printed}");
    assert!(!printed.contains("first | once"), "{printed}");
    let logs = stdout(&done(place.longshore(&["logs", &run])));
    assert_eq!(logs, "first | once\nlong | up 1\nlong | over\n");
    assert!(place.containers().is_empty() && place.locks().is_empty());
}

#[test]
fn an_interrupted_run_whose_containers_were_swept_goes_on_too() {
    let place = Place::new();
    let script = "echo up $LONGSHORE_ATTEMPT\n[ $LONGSHORE_ATTEMPT = 1 ] || exit 0\nsleep 600";
    place.file("p.yaml", &pipeline(&[("long", "timeout: 20m", script)]));
    place.file("short.yaml", &pipeline(&[("short", "timeout: 1m", "true")]));
    let mut killed = Started::new(place.with_docker(&["run", "p.yaml"]));
    let run = run_id(&killed.until("1 step"));
    killed.until("long | up 1");
    killed.signal(Signal::KILL);
    killed.child.wait().unwrap();
    assert_eq!(code(&done(place.with_docker(&["run", "short.yaml"]))), 0);
    assert!(place.containers().is_empty());
    let output = done(place.with_docker(&["retry", &run]));
    let printed = stdout(&output);
    assert_eq!(code(&output), 0, "{printed}{}", stderr(&output));
    assert!(printed.contains("long | up 2\n"), "{printed}");
    let why = stdout(&done(place.longshore(&["why", &run, "long"])));
    assert!(why.contains("the fleet tries it again (once)") && why.contains("it passed"), "{why}");
}

//! What needs no Docker Engine: bad input, plans, words of advice.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod harness;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use harness::{Place, code, done, objects, stderr, stdout};
use rustix::process::{Pid, Signal, kill_process};

const BAD: &str = "\
name: bad
steps:
  - name: build
    image: busybox
    run: make
  - name: test
    form: build
    run: make test
";

const GOOD: &str = "\
name: good
steps:
  - name: build
    image: busybox
    run: make
  - name: test
    from: build
    matrix: {cc: [gcc, clang]}
    run: make test CC=${{ matrix.cc }}
  - name: package
    from: build
    needs: [test]
    run: make dist
";

#[test]
fn a_bad_pipeline_is_exit_code_2_with_its_line_and_nothing_is_made() {
    let place = Place::new();
    place.file("bad.yaml", BAD);
    for args in [
        &["run", "bad.yaml"][..],
        &["plan", "bad.yaml"],
        &["submit", "bad.yaml", "--coordinator", "http://127.0.0.1:1"],
    ] {
        let output = done(place.longshore(args));
        let said = stderr(&output);
        assert_eq!(code(&output), 2, "{args:?}: {said}");
        assert!(said.contains("form: build") && said.contains("bad.yaml:7"), "{said}");
        assert!(said.contains("did you mean `from`?"), "{said}");
        assert_eq!(stdout(&output), "");
    }
    place.file("good.yaml", GOOD);
    let named = done(place.longshore(&["run", "good.yaml", "--name", "a/b"]));
    assert_eq!(code(&named), 2, "{}", stderr(&named));
    assert!(stderr(&named).contains("--name: `a/b` is not a name"), "{}", stderr(&named));
    assert!(!place.state().exists());
    let json = done(place.longshore(&["--output", "json", "plan", "bad.yaml"]));
    let error = &objects(&stdout(&json))[0];
    assert_eq!((&error["type"], &error["exit_code"]), (&"error".into(), &2.into()));
    assert!(error["message"].as_str().unwrap().contains("bad.yaml:7"), "{error}");
}

#[test]
fn a_missing_file_or_source_is_exit_code_2() {
    let place = Place::new();
    let missing = done(place.longshore(&["run", "none.yaml"]));
    assert_eq!(code(&missing), 2);
    assert_eq!(stderr(&missing).lines().count(), 1, "{}", stderr(&missing));
    let directory = done(place.longshore(&["run", "."]));
    assert_eq!(
        (code(&directory), stderr(&directory).as_str()),
        (2, "longshore: . is a directory; name a pipeline file in it\n")
    );
    place.file(
        "p.yaml",
        "name: p\nsteps:\n  - name: a\n    image: i\n    run: x\n    sources: [{path: ./gone, target: /in}]\n",
    );
    let source = done(place.longshore(&["run", "p.yaml"]));
    assert_eq!(code(&source), 2, "{}", stderr(&source));
    assert!(stderr(&source).contains("gone does not exist") && stderr(&source).contains("nothing was submitted"));
    assert!(!place.state().exists());
}

#[test]
fn without_docker_one_sentence_says_what_to_do() {
    let place = Place::new();
    place.file("p.yaml", GOOD);
    let output = done(place.longshore(&["run", "p.yaml"]));
    assert_eq!(code(&output), 3);
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("no Docker Engine answers at unix:///nonexistent/docker.sock"), "{said}");
    assert!(said.contains("start Docker"), "{said}");
    assert_eq!(stdout(&output), "");
    assert!(!place.state().exists(), "something was made before Docker was looked for");
}

#[test]
fn a_plan_is_printed_in_three_forms() {
    let place = Place::new();
    place.file("good.yaml", GOOD);
    let plan = |format: &str| stdout(&done(place.longshore(&["plan", "good.yaml", "--format", format])));
    golden("plan.txt", &plan("text"));
    golden("plan.dot", &plan("dot"));
    let json: serde_json::Value = serde_json::from_str(&plan("json")).unwrap();
    let names: Vec<_> = json["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["build", "test[cc=gcc]", "test[cc=clang]", "package"]);
    let line = objects(&stdout(&done(place.longshore(&["--output", "json", "plan", "good.yaml"]))));
    assert_eq!(line[0]["steps"], json["steps"]);
}

#[test]
fn the_schema_is_of_pipeline_files() {
    let place = Place::new();
    let schema: serde_json::Value = serde_json::from_str(&stdout(&done(place.longshore(&["schema"])))).unwrap();
    assert!(schema["properties"]["steps"].is_object(), "{schema}");
}

#[test]
fn what_is_not_there_is_said_with_the_mend() {
    let place = Place::new();
    let cases: [(&[&str], i32, &str); 7] = [
        (&["show"], 2, "no run yet"),
        (&["logs", "0123"], 2, "`longshore ls` lists them"),
        (&["show", "018f2a3b-4c5d-7000-8000-000000000001"], 2, "`longshore ls` lists them"),
        (&["workers"], 2, "--coordinator"),
        (&["workers", "--coordinator", "http://127.0.0.1:1"], 3, "start one with `longshore coordinator`"),
        (&["workers", "--coordinator", "https://localhost"], 2, "http://"),
        (&["watch", "last"], 2, "LONGSHORE_COORDINATOR"),
    ];
    for (args, expected, words) in cases {
        let output = done(place.longshore(args));
        assert_eq!(code(&output), expected, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{args:?}: {}", stderr(&output));
    }
    assert_eq!(stdout(&done(place.longshore(&["ls"]))), "no runs yet; start one with `longshore run FILE`\n");
    assert_eq!(code(&done(place.longshore(&["runn"]))), 2);
}

#[test]
fn doctor_names_each_problem_and_its_mend() {
    let place = Place::new();
    let args = ["--output", "json", "doctor", "--amqp", "amqp://127.0.0.1:1", "--coordinator", "http://127.0.0.1:1"];
    let output = done(place.longshore(&args));
    assert_eq!(code(&output), 3);
    let checks = objects(&stdout(&output));
    let check = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    for ill in ["Docker", "RabbitMQ", "coordinator"] {
        assert_eq!(check(ill)["state"], "problem", "{ill}");
        assert!(check(ill)["mend"].is_string(), "{ill}");
    }
    assert_eq!(check("state directory")["state"], "ok");
    assert!(check("disk")["found"].as_str().unwrap().contains("free"));
    let text = stdout(&done(place.longshore(&["doctor"])));
    assert!(text.contains("✗ Docker") && text.contains("→ start Docker") && text.contains("- RabbitMQ"), "{text}");
}

#[test]
fn a_coordinator_open_to_anybody_is_refused() {
    let place = Place::new();
    let args = ["coordinator", "--listen", "0.0.0.0:0", "--amqp", "amqp://127.0.0.1:1"];
    let output = done(place.longshore(&args));
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("without a token"), "{}", stderr(&output));
}

#[test]
fn a_coordinator_that_the_others_could_not_reach_is_refused() {
    let place = Place::new();
    let args = ["coordinator", "--listen", "0.0.0.0:0", "--token", "t", "--database", "postgres://u@127.0.0.1:1/d"];
    let mut command = place.longshore(&args);
    command.env("LONGSHORE_ADVERTISE", "");
    let output = done(command);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert!(stderr(&output).contains("--advertise http://HOST:PORT"), "{}", stderr(&output));
    assert!(!place.state().exists(), "it was refused before anything was made");
}

#[test]
fn what_cannot_be_replayed_is_said() {
    let place = Place::new();
    let none = done(place.longshore(&["replay"]));
    assert_eq!(code(&none), 2, "{}", stderr(&none));
    assert!(stderr(&none).contains("there is no journal in"), "{}", stderr(&none));
    // As coordinators of a Postgres leave it.
    place.file("state/coordinator/blobs/shared-by", "somebody");
    let away = done(place.longshore(&["replay"]));
    assert_eq!(code(&away), 2, "{}", stderr(&away));
    assert!(stderr(&away).contains("state/coordinator is in Postgres"), "{}", stderr(&away));
}

#[test]
fn a_broker_that_is_not_there_is_waited_for_and_said() {
    let place = Place::new();
    let args = ["coordinator", "--listen", "127.0.0.1:0", "--amqp", "amqp://u:s3cret@127.0.0.1:1"];
    let mut child = place.longshore(&args).stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    let mut until = |text: &str| {
        loop {
            let line = errors.next().unwrap_or_else(|| panic!("{text:?} never came:\n{said}")).unwrap();
            said.push_str(&line);
            said.push('\n');
            if line.contains(text) {
                return line;
            }
        }
    };
    let address = until("listens on http://").split_once("listens on ").unwrap().1.to_owned();
    until("waiting for RabbitMQ at amqp://127.0.0.1:1,");
    // Its API answers meanwhile: a supervisor that asks for its health does not end it.
    let doctor = done(place.longshore(&["--output", "json", "doctor", "--coordinator", &address]));
    let checks = objects(&stdout(&doctor));
    let found = checks.iter().find(|check| check["name"] == "coordinator").unwrap()["found"].as_str().unwrap();
    assert!(found.contains("not ready") && found.contains("no connection to its broker"), "{found}");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    until("stopping");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!said.contains("s3cret") && !said.contains("lapin") && !said.contains(": ready"), "{said}");
}

#[test]
fn secrets_are_in_no_help_and_no_error() {
    let place = Place::new();
    for args in [&["worker", "--help"][..], &["coordinator", "--help"], &["doctor", "--help"], &["ls"], &["doctor"]] {
        let mut command = place.longshore(args);
        command.env("LONGSHORE_TOKEN", "s3cret").env("LONGSHORE_AMQP", "amqp://u:s3cret@127.0.0.1:1");
        command.env("LONGSHORE_COORDINATOR", "http://u:s3cret@127.0.0.1:1");
        let output = done(command);
        let said = stdout(&output) + &stderr(&output);
        assert!(!said.contains("s3cret") && !said.is_empty(), "{args:?}: {said}");
    }
}

#[test]
fn the_version_is_told() {
    let place = Place::new();
    let output = done(place.longshore(&["--version"]));
    assert_eq!(stdout(&output), format!("longshore {}\n", env!("CARGO_PKG_VERSION")));
}

/// Compares with a file; with `UPDATE_GOLDEN=1` writes it.
fn golden(name: &str, found: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, expected, "{} is to be read again, or UPDATE_GOLDEN=1 set", path.display());
}

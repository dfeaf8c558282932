//! What a user's own process sees of a fleet: `longshore submit --watch`, sources, images.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bollard::Docker;
use bollard::query_parameters::{PushImageOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder};
use futures_util::TryStreamExt as _;
use longshore_coordinator::core::view::RunOutcome;
use longshore_tests::{Fleet, services};

#[tokio::test]
async fn a_watching_client_resumes_after_kill_9_of_the_coordinator_and_prints_every_line_once() {
    let mut fleet = Fleet::new().worker("one", 1).start().await;
    let file = written(
        &fleet,
        r#"
name: watched
defaults: {image: "longshore-test/busybox:latest"}
steps:
  - name: first
    run: |
      for i in $(seq 1 40); do echo "line $i"; sleep 0.1; done
  - name: second
    from: first
    run: |
      for i in $(seq 1 40); do echo "line $i"; done
"#,
    );
    let (run, mut client) = fleet.submit_and_watch(&file);
    client.says("first | line 3").await;
    fleet.kill_coordinator().await;
    fleet.start_coordinator().await;

    let (code, said) = client.ends().await;
    assert_eq!(code, 0, "{said:#?}");
    let printed = |step: &str| -> Vec<String> {
        said.iter().filter_map(|line| line.strip_prefix(&format!("{step} | "))).map(str::to_owned).collect()
    };
    let expected: Vec<String> = (1..=40).map(|i| format!("line {i}")).collect();
    assert_eq!(printed("first"), expected);
    assert_eq!(printed("second"), expected);
    fleet.follow(run).settles(RunOutcome::Passed).await;
    fleet.checks_out().await;
}

#[tokio::test]
async fn two_clients_at_once_see_each_its_own_run() {
    let fleet = Fleet::new().worker("one", 1).worker("two", 2).start().await;
    let clients = ["red", "blue"].map(|name| {
        let text = format!(
            r#"
name: {name}
defaults: {{image: "longshore-test/busybox:latest"}}
steps:
  - name: root
    run: |
      echo {name} > /whose
      echo "{name} root"
  - name: child
    from: root
    matrix: {{n: [1, 2, 3]}}
    run: echo "$(cat /whose) child"
"#
        );
        let file = fleet.dir().join(format!("{name}.yaml"));
        std::fs::write(&file, text).expect("writable");
        (name, fleet.submit_and_watch(&file))
    });
    for (name, (run, client)) in clients {
        let (code, said) = client.ends().await;
        assert_eq!(code, 0, "{name}: {said:#?}");
        let mut lines: Vec<_> = said.iter().filter(|line| line.contains(" | ")).cloned().collect();
        lines.sort();
        let expected = [
            format!("child[n=1] | {name} child"),
            format!("child[n=2] | {name} child"),
            format!("child[n=3] | {name} child"),
            format!("root | {name} root"),
        ];
        assert_eq!(lines, expected);
        fleet.follow(run).settles(RunOutcome::Passed).await;
    }
    fleet.checks_out().await;
}

#[tokio::test]
async fn a_directory_of_the_submitters_is_the_same_tree_in_the_step() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let file = written(
        &fleet,
        r#"
name: sources
steps:
  - name: compare
    image: "longshore-test/busybox:latest"
    sources:
      - path: tree
        target: /not/there/before
    workdir: /not/there/before
    run: |
      find . -type f | sort | xargs grep -H ""
      find . -type l | sort | while read -r link; do echo "$link -> $(readlink "$link")"; done
      echo "$(find . -mindepth 1 | wc -l) entries"
      ./bin/run
      if cat outside/secret 2>/dev/null; then exit 1; fi
"#,
    );
    let expected = tree_of_2000_files(fleet.dir());
    let (run, client) = fleet.submit_and_watch(&file);
    let (code, said) = client.ends().await;
    assert_eq!(code, 0, "{:#?}", said.iter().rev().take(20).collect::<Vec<_>>());
    let log = fleet.follow(run).log("compare").await;
    let differs = log.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert_eq!(differs, None, "the first line that differs");
    assert_eq!(log.lines().count(), expected.lines().count());
    fleet.checks_out().await;
}

/// Beside it lies a directory to which a link of the tree leads. The answer is what the step must print.
fn tree_of_2000_files(dir: &Path) -> String {
    use std::fmt::Write as _;
    let tree = dir.join("tree");
    let mut expected = String::new();
    let script = "#!/bin/sh\necho it runs\n";
    std::fs::create_dir_all(tree.join("bin")).expect("writable");
    std::fs::write(tree.join("bin/run"), script).expect("writable");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(tree.join("bin/run"), executable).expect("our own file");
    script.lines().for_each(|line| writeln!(expected, "./bin/run:{line}").expect("memory"));
    for part in 0..40 {
        std::fs::create_dir(tree.join(format!("part-{part:02}"))).expect("writable");
        for n in 0..50 {
            let name = format!("part-{part:02}/file-{n:02}.txt");
            std::fs::write(tree.join(&name), format!("content {part} {n}\n")).expect("writable");
            writeln!(expected, "./{name}:content {part} {n}").expect("memory");
        }
    }
    std::fs::create_dir(dir.join("beside")).expect("writable");
    std::fs::write(dir.join("beside/secret"), "not to be seen").expect("writable");
    symlink("../beside", tree.join("outside")).expect("writable");
    symlink("part-00/file-00.txt", tree.join("within")).expect("writable");
    let entries = 1 + 1 + 40 + 2_000 + 2;
    write!(expected, "./outside -> ../beside\n./within -> part-00/file-00.txt\n{entries} entries\nit runs\n")
        .expect("memory");
    expected
}

#[tokio::test]
async fn an_image_that_only_the_registry_has_is_pulled_by_the_step_that_needs_it() {
    let fleet = Fleet::new().worker("one", 1).start().await;
    let docker = engine(&fleet, "one").await;
    let repository = format!("{}/fleet/{}", services::env("LONGSHORE_TEST_REGISTRY"), uuid::Uuid::new_v4().simple());
    let image = format!("{repository}:v1");
    let tag = TagImageOptionsBuilder::new().repo(&repository).tag("v1").build();
    docker.tag_image("longshore-test/busybox:latest", Some(tag)).await.expect("the tests' base image is there");
    let push = PushImageOptionsBuilder::new().tag("v1").build();
    let pushed: Vec<_> = docker.push_image(&repository, Some(push), None).try_collect().await.expect("pushed");
    assert!(!pushed.is_empty(), "the registry said something");
    docker.remove_image(&image, None::<RemoveImageOptions>, None).await.expect("it is tagged");

    let run = fleet.submit(&format!("{{name: pulls, steps: [{{name: s, image: '{image}', run: echo pulled}}]}}")).await;
    run.settles(RunOutcome::Passed).await;
    assert_eq!(run.log("s").await, "pulled\n");
    docker.remove_image(&image, None::<RemoveImageOptions>, None).await.expect("the step has pulled it");
    fleet.checks_out().await;
}

/// The Engine beside a worker, asked behind the product's back.
async fn engine(fleet: &Fleet, worker: &str) -> Docker {
    let docker = Docker::connect_with_unix(fleet.engine_of(worker), 60, bollard::API_DEFAULT_VERSION);
    docker.expect("a unix socket's address").negotiate_version().await.expect("the Engine answers")
}

/// A pipeline file in the fleet's directory.
fn written(fleet: &Fleet, pipeline: &str) -> PathBuf {
    let file = fleet.dir().join("pipeline.yaml");
    std::fs::write(&file, pipeline).expect("writable");
    file
}

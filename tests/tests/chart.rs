//! The Helm chart, linted and rendered with a real helm.

use std::path::PathBuf;
use std::process::{Command, Output};

use longshore_tests::services;

const SETTINGS: &str = "image.repository=registry.example/longshore,broker.url=amqp://user:pass@mq:5672,auth.token=secret,\
    metrics.podMonitor.enabled=true,metrics.dashboard.enabled=true,metrics.alerts.enabled=true";

/// The one on the PATH, else the one that `scripts/setup.sh test` has built.
fn helm(args: &[&str]) -> Output {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).unwrap_or_default();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{path}:{}", cache.join("longshore/bin").display());
    let chart = services::root().join("charts/longshore").display().to_string();
    let mut command = Command::new("sh");
    command.args(["-c", "exec helm \"$@\"", "helm", args[0]]);
    let name = (args[0] == "template").then_some("fleet");
    command.args(name).arg(chart).args(&args[1..]).env("PATH", path).output().expect("sh")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_chart_lints_and_renders_with_everything_on() {
    let lint = helm(&["lint", "--strict", "--set", SETTINGS]);
    assert!(lint.status.success(), "{}", text(&lint));
    let rendered = helm(&["template", "--set", SETTINGS]);
    assert!(rendered.status.success(), "{}", text(&rendered));
    let documents = String::from_utf8(rendered.stdout).expect("YAML is UTF-8");

    let mut kinds = Vec::new();
    for document in documents.split("\n---").filter(|document| document.contains("kind:")) {
        let value: serde_json::Value = serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{e}:\n{document}"));
        if value["kind"] == "PodMonitor" {
            // The coordinator refuses who shows no token; the workers have none to ask for.
            let token = &value["spec"]["podMetricsEndpoints"][0]["authorization"]["credentials"];
            assert_eq!((&token["name"], &token["key"]), (&"fleet-longshore".into(), &"token".into()), "{document}");
        }
        kinds.push(value["kind"].as_str().unwrap_or_default().to_owned());
    }
    kinds.sort();
    let expected = [
        "ConfigMap",
        "DaemonSet",
        "PodMonitor",
        "PrometheusRule",
        "Secret",
        "Service",
        "ServiceAccount",
        "StatefulSet",
    ];
    assert_eq!(kinds, expected);
    // A secret is in the Secret and nowhere else: not in an argv, not in another object.
    assert_eq!(documents.matches("user:pass").count(), 1);
}

/// P21: on a database of theirs, with one directory for all, and none of it by name in an argv.
#[test]
fn two_coordinators_share_a_database_and_a_volume() {
    let settings =
        format!("{SETTINGS},coordinator.replicas=2,database.url=postgres://longshore:s3cret@pg:5432/longshore");
    let lint = helm(&["lint", "--strict", "--set", &settings]);
    assert!(lint.status.success(), "{}", text(&lint));
    let rendered = helm(&["template", "--set", &settings]);
    assert!(rendered.status.success(), "{}", text(&rendered));
    let documents = String::from_utf8(rendered.stdout).expect("YAML is UTF-8");
    assert_eq!(documents.matches("s3cret").count(), 1, "in the Secret and nowhere else");
    let of_kind = |kind: &str| -> serde_json::Value {
        let document = documents.split("\n---").find(|document| document.contains(&format!("kind: {kind}\n")));
        let document = document.unwrap_or_else(|| panic!("no {kind}"));
        serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{e}:\n{document}"))
    };
    let coordinators = of_kind("StatefulSet");
    assert_eq!(coordinators["spec"]["replicas"], 2);
    // Each is reached by the others at a name, which only a headless service of theirs gives it.
    let name = coordinators["spec"]["serviceName"].as_str().expect("a service");
    assert!(documents.contains(&format!("name: {name}\n")) && documents.contains("clusterIP: None"), "{documents}");
    let env = coordinators["spec"]["template"]["spec"]["containers"][0]["env"].as_array().expect("variables");
    let advertise = env.iter().find(|variable| variable["name"] == "LONGSHORE_ADVERTISE").expect("it says where");
    assert_eq!(advertise["value"], format!("http://$(POD_NAME).{name}.default.svc:8080"));
    assert_eq!(coordinators["spec"]["volumeClaimTemplates"], serde_json::Value::Null, "a volume each is of no use");
    let claim = of_kind("PersistentVolumeClaim");
    assert_eq!(claim["spec"]["accessModes"][0], "ReadWriteMany");
    let volumes = coordinators["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes");
    let claimed =
        volumes.iter().filter(|volume| volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]);
    assert_eq!(claimed.count(), 1);
    assert_eq!(of_kind("PodDisruptionBudget")["spec"]["minAvailable"], 1);
}

/// A supervisor is known by its process's number.
#[test]
fn a_worker_sees_the_processes_of_its_node_unless_that_is_refused() {
    for (settings, expected) in [(SETTINGS.to_owned(), 1), (format!("{SETTINGS},worker.hostPID=false"), 0)] {
        let rendered = helm(&["template", "--set", &settings]);
        assert!(rendered.status.success(), "{}", text(&rendered));
        assert_eq!(text(&rendered).matches("hostPID: true").count(), expected);
    }
}

#[test]
fn every_flag_and_variable_in_the_chart_is_one_of_the_binarys() {
    let settings = format!("{SETTINGS},database.url=postgres://pg/longshore");
    let rendered = String::from_utf8(helm(&["template", "--set", &settings]).stdout).expect("YAML is UTF-8");
    for command in ["coordinator", "worker"] {
        let help =
            Command::new(longshore_tests::process::binary()).args([command, "--help"]).output().expect("it runs");
        let help = text(&help);
        let kind = if command == "worker" { "kind: DaemonSet" } else { "kind: StatefulSet" };
        let document = rendered.split("\n---").find(|document| document.contains(kind)).expect("rendered");
        let words = document.split(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c));
        let named = words.filter(|word| word.starts_with("--") || word.starts_with("LONGSHORE_"));
        let named: Vec<_> = named.collect();
        assert!(!named.is_empty(), "{document}");
        for name in named {
            assert!(help.contains(name), "{name} is not in the help of `longshore {command}`:\n{help}");
        }
    }
}

#[test]
fn what_the_chart_cannot_do_without_is_said() {
    for (missing, settings) in [
        ("image", "broker.url=amqp://mq,auth.token=t"),
        ("broker.url", "image.repository=i,auth.token=t"),
        ("auth.token", "image.repository=i,broker.url=amqp://mq"),
        ("pools", "image.repository=i,broker.url=amqp://mq,auth.token=t,pools=null"),
        ("database.url", "image.repository=i,broker.url=amqp://mq,auth.token=t,coordinator.replicas=2"),
    ] {
        let rendered = helm(&["template", "--set", settings]);
        assert!(!rendered.status.success(), "rendered without {missing}");
        assert!(text(&rendered).contains(missing), "{missing}: {}", text(&rendered));
    }
}

//! The pipeline file as users meet it: every class of mistake, plans, the schema, and what holds for any file.

#![allow(clippy::unwrap_used, reason = "a test that cannot have its files has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use longshore_coordinator::pipeline::{self, Parent, Pipeline, PipelineErrors, Retry, RetryOn};
use longshore_protocol::job::{Command, Network};
use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::prelude::*;

fn parse(text: &str) -> Result<Pipeline, PipelineErrors> {
    pipeline::parse("pipeline.yaml", text)
}

fn plan(text: &str) -> Pipeline {
    parse(text).unwrap_or_else(|errors| panic!("{errors:#}\nin\n{text}"))
}

fn names(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.steps.iter().map(|step| step.name.as_str()).collect()
}

/// Compares what each file of a directory gives with the `.txt` beside it; `UPDATE_GOLDEN=1` writes that anew.
fn golden(directory: &str, render: impl Fn(&str, &str) -> String) -> usize {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pipeline").join(directory);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension != "txt"));
    files.sort();
    let mut wrong = String::new();
    for path in &files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let actual = render(name, &fs::read_to_string(path).unwrap());
        let expected_path = path.with_file_name(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected_path, &actual).unwrap();
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if actual != expected {
            writeln!(wrong, "== {name}\n-- expected\n{expected}\n-- actual\n{actual}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 accepts these:\n{wrong}");
    files.len()
}

#[test]
fn every_class_of_mistake_shows_its_line() {
    let count = golden("mistakes", |name, text| {
        let errors = pipeline::parse(name, text).map(|plan| format!("{plan:?}")).expect_err(name);
        let mut report = String::new();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
        handler.render_report(&mut report, &errors).unwrap();
        format!("{report}\n{errors:#}\n")
    });
    assert!(count >= 25, "only {count} files found");
}

#[test]
fn plans_read_at_a_glance() {
    let count = golden("plans", |name, text| {
        let pipeline = pipeline::parse(name, text).unwrap_or_else(|errors| panic!("{errors:#}"));
        let json = serde_json::to_string_pretty(&pipeline).unwrap();
        format!("{}\n{}\n{json}\n", pipeline::to_text(&pipeline), pipeline::to_dot(&pipeline))
    });
    assert!(count >= 2, "only {count} files found");
}

#[test]
fn how_a_step_waits_is_its_own_the_defaults_or_the_pipelines() {
    let text = "name: a\ntimeout: 2h\npriority: -3\nqueue_timeout: 5m\n\
                defaults: {image: debian, concurrency: {group: all, max: 4}}\nsteps:\n\
                - {name: plain, run: x}\n\
                - {name: own, matrix: {n: [1, 2]}, priority: 100, queue_timeout: 9m, run: x, \
                   concurrency: 'site-${{ matrix.n }}'}\n";
    let pipeline = plan(text);
    assert_eq!(pipeline.timeout_ms, Some(7_200_000));
    let waits = |step: usize| {
        let step = &pipeline.steps[step];
        let group = step.concurrency.as_ref().map(|of| (of.group.as_str(), of.max));
        (step.priority, step.queue_timeout_ms, group)
    };
    assert_eq!(waits(0), (-3, Some(300_000), Some(("all", 4))));
    assert_eq!(waits(1), (100, Some(540_000), Some(("site-1", 1))));
    assert_eq!(waits(2), (100, Some(540_000), Some(("site-2", 1))));
    let step = |keys: &str| format!("name: a\nsteps:\n- {{name: b, image: i, run: x, {keys}}}\n");
    for (keys, says) in [
        ("priority: 101", "a whole number from -100 to 100"),
        ("priority: 1.5", "a whole number"),
        ("queue_timeout: 1", "give it a unit"),
        ("queue_timeout: 8d", "at most `7d`"),
        ("concurrency: 7", "put it in quotes"),
        ("concurrency: {group: g, max: 0}", "a whole number from 1"),
        ("concurrency: {max: 2}", "has no `group`"),
        ("concurrency: ''", "1 to 200 characters"),
    ] {
        let errors = parse(&step(keys)).map(|plan| format!("{plan:?}")).expect_err(keys);
        assert!(format!("{errors:#}").contains(says), "{keys}: {errors:#}");
    }
}

#[test]
fn yaml_and_json_are_one_language() {
    let yaml = "name: a\nsteps:\n- name: b\n  image: debian\n  timeout: 1h30m\n  command: [echo, '1']\n";
    let json = r#"{"name":"a","steps":[{"name":"b","image":"debian","timeout":"1h30m","command":["echo","1"]}]}"#;
    assert_eq!(plan(yaml), plan(json));
    assert_eq!(plan(&yaml.replace('\n', "\r\n")), plan(json));
    assert_eq!(plan(&format!("\u{feff}{yaml}")), plan(json));
    assert_eq!(
        plan(&serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(json).unwrap()).unwrap()),
        plan(json)
    );
}

#[test]
fn a_step_without_keys_has_the_documented_defaults() {
    let pipeline = plan("{name: p, steps: [{name: s, image: debian, run: make}]}");
    let step = &pipeline.steps[0];
    assert_eq!((step.spec.timeout_ms, step.spec.grace_ms), (3_600_000, 10_000));
    assert_eq!(step.spec.network, Network::None);
    assert_eq!(step.spec.pool.as_str(), "default");
    assert_eq!(step.spec.command.argv(), ["/bin/sh", "-e", "-c", "make"]);
    assert_eq!((step.retry.max, step.keep_going, &step.cache_key), (0, false, &None));
    assert_eq!(step.parent, Parent::Image("debian".to_owned()));
    let json = serde_json::to_string(&pipeline).unwrap();
    assert_eq!(serde_json::from_str::<Pipeline>(&json).unwrap(), pipeline);
}

#[test]
fn environments_are_merged_nearest_first_and_stay_in_order() {
    let pipeline = plan(
        "{name: p, env: {A: 1, B: 1, C: 1.10}, defaults: {image: i, env: {B: 2, D: 2}}, \
         steps: [{name: s, run: x, env: {D: 3, E: true, A: 3}}]}",
    );
    let env: Vec<_> = pipeline.steps[0].spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["A=3", "B=2", "C=1.10", "D=3", "E=true"]);
}

#[test]
fn what_belongs_to_the_shell_reaches_it_unchanged() {
    let script = "echo $HOME ${HOME} ${#HOME} {{ x }} {% y %} {# z #}\n\n";
    let pipeline = plan(
        &serde_json::json!({
            "name": "p", "steps": [{"name": "s", "image": "i", "run": script}]
        })
        .to_string(),
    );
    let Command::Script { script: kept, .. } = &pipeline.steps[0].spec.command else { panic!("a script") };
    assert_eq!(kept, script);
}

#[test]
fn words_that_look_like_numbers_to_rust_are_words() {
    let pipeline = plan("{name: inf, steps: [{name: nan, image: Infinity, command: [0x10, 1_000, ~x]}]}");
    assert_eq!((pipeline.name.as_str(), names(&pipeline)), ("inf", vec!["nan"]));
    assert_eq!(pipeline.steps[0].spec.command.argv(), ["0x10", "1_000", "~x"]);
}

#[test]
fn ten_thousand_steps_in_a_chain_are_planned_and_shown() {
    let mut text = "name: p\nsteps:\n- {name: s0, image: i, run: x}\n".to_owned();
    for n in (1..10_000).rev() {
        writeln!(text, "- {{name: s{n}, from: s{}, run: x}}", n - 1).unwrap();
    }
    let pipeline = plan(&text);
    assert_eq!(names(&pipeline)[9_999], "s9999");
    let shown = pipeline::to_text(&pipeline);
    let last = shown.lines().last().unwrap();
    assert!(last.starts_with("… ") && last.contains("└ s9999"), "{last}");
    assert_eq!(pipeline::to_dot(&pipeline).matches(" -> ").count(), 10_000);
}

#[test]
fn steps_come_in_an_order_in_which_they_can_run_and_else_as_in_the_file() {
    let pipeline = plan(
        "{name: p, defaults: {image: i}, steps: [{name: d, needs: [b], run: x}, {name: a, run: x}, \
         {name: b, from: a, run: x}, {name: c, run: x}]}",
    );
    assert_eq!(names(&pipeline), ["a", "b", "d", "c"]);
}

#[test]
fn a_matrix_child_goes_on_with_the_instance_of_its_own_values() {
    let pipeline = plan(
        "{name: p, defaults: {image: i}, steps: [{name: b, run: x, matrix: {v: [1, 2]}}, \
         {name: t, from: b, needs: [b], run: x, matrix: {w: [x, y], v: [2, 1]}}]}",
    );
    let step = |name: &str| pipeline.steps.iter().find(|step| step.name.as_str() == name).unwrap();
    assert_eq!(step("t[w=y,v=2]").parent, Parent::Step("b[v=2]".into()));
    // The parent is waited for anyway: only the other instance is left of `needs`.
    assert_eq!(step("t[w=y,v=2]").needs, ["b[v=1]".into()]);
}

#[test]
fn a_mistake_that_follows_from_another_is_not_told() {
    let errors = parse("{name: p, steps: [{name: s, imgae: i, run: x}]}").unwrap_err();
    let told: Vec<_> = errors.mistakes().iter().map(ToString::to_string).collect();
    assert_eq!(told, ["unknown key `imgae` in a step"]);
    assert_eq!(errors.to_string(), "pipeline.yaml:1:29: unknown key `imgae` in a step");
    assert_eq!(format!("{errors:#}"), "pipeline.yaml:1:29: unknown key `imgae` in a step (did you mean `image`?)");
}

#[test]
fn at_most_twenty_mistakes_are_shown_and_the_rest_counted() {
    let steps: Vec<_> = (0..50).map(|n| format!("{{name: s{n}, image: i, run: x, colour: red}}")).collect();
    let errors = parse(&format!("{{name: p, steps: [{}]}}", steps.join(","))).unwrap_err();
    assert_eq!(errors.mistakes().len(), 20);
    assert!(
        errors.to_string().starts_with("50 mistakes in pipeline.yaml (20 are shown), the first in line 1: "),
        "{errors}"
    );
    assert!(format!("{errors:#}").ends_with("and 30 more"));
}

#[test]
fn bounds_hold_at_their_edges() {
    let with = |what: &str| parse(&format!("{{name: p, steps: [{{name: s, image: i, {what}}}]}}"));
    let script = |bytes: usize| with(&format!("run: {}", "x".repeat(bytes)));
    assert!(script(128 * 1024 - 1).is_ok());
    assert!(script(128 * 1024).unwrap_err().to_string().contains("Linux takes"));
    let matrix = |count: usize| {
        let values: Vec<_> = (0..count).map(|n| n.to_string()).collect();
        with(&format!("run: x, matrix: {{n: [{}]}}", values.join(",")))
    };
    assert_eq!(matrix(10_000).unwrap().steps.len(), 10_000);
    assert!(matrix(10_001).is_err());
    let text = format!("{{name: p, steps: [{{name: s, image: i, run: x}}]}}#{}", "x".repeat(1024 * 1024));
    assert!(parse(&text).unwrap_err().to_string().contains("too large"));
    let values: Vec<_> = (0..1000).map(|n| n.to_string()).collect();
    let bomb = with(&format!("run: {}, matrix: {{n: [{}]}}", "x".repeat(100_000), values.join(",")));
    assert!(bomb.unwrap_err().to_string().contains("after expansion"));
    let grown = with("run: \"${{ 'xxxxxxxx' * 100000 }}\"").unwrap_err().to_string();
    assert!(grown.contains("Linux takes"), "{grown}");
    let deep = format!("name: {}{}", "[".repeat(200), "]".repeat(200));
    assert!(parse(&deep).unwrap_err().to_string().contains("nested"));
}

type Change = fn(&mut Pipeline);

#[test]
fn a_submitted_pipeline_is_checked_again() {
    let good = plan(
        "{name: p, defaults: {image: i}, steps: [{name: a, run: x, cache: {key: k}}, {name: b, from: a, run: x}]}",
    );
    pipeline::validate(&good).unwrap();
    let changes: [(&str, Change); 17] = [
        ("stands before it", |p| p.steps.reverse()),
        ("stands before it", |p| p.steps[0].needs.push("a".into())),
        ("two of this name", |p| p.steps[1].name = "a".into()),
        ("1 to 10000", |p| p.steps.clear()),
        ("not a name", |p| p.name = "a b".to_owned()),
        ("not a name", |p| p.steps[0].name = "a/b".into()),
        ("as well", |p| p.steps[1].needs = vec!["a".into()]),
        ("twice", |p| {
            p.steps[1].parent = Parent::Image("i".to_owned());
            p.steps[1].needs = vec!["a".into(), "a".into()];
        }),
        ("`retry`", |p| p.steps[0].retry = Retry::times(11)),
        ("exit status 0", |p| p.steps[0].retry.on = vec![RetryOn::Exit(0)]),
        ("`1h`", |p| p.steps[0].retry.backoff_ms = 3_600_001),
        ("`1s`", |p| p.steps[0].spec.timeout_ms = 0),
        ("cache key", |p| p.steps[1].cache_key = Some("k".to_owned())),
        ("absolute", |p| p.steps[0].spec.workdir = Some("src".to_owned())),
        ("variable", |p| drop(p.steps[0].spec.env.insert("A=B".to_owned(), String::new()))),
        ("no program", |p| p.steps[0].spec.command = Command::Argv(Vec::new())),
        ("6MiB", |p| p.steps[0].spec.resources.memory_bytes = Some(1)),
    ];
    for (message, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let error = pipeline::validate(&bad).expect_err(message);
        assert!(error.contains(message), "{error} should contain {message}");
    }
}

#[test]
fn the_schema_is_the_one_in_the_documents() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pipeline.schema.json");
    let actual = serde_json::to_string_pretty(&pipeline::json_schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &actual).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap_or_default(), actual, "UPDATE_GOLDEN=1 accepts it");
}

/// Keys of the schema by the place at which they stand, as the tables of the document name them.
fn schema_keys() -> BTreeMap<String, BTreeSet<String>> {
    let schema = pipeline::json_schema();
    let root = &schema["properties"];
    let step = &root["steps"]["items"]["properties"];
    let places = [
        ("pipeline", root),
        ("defaults", &root["defaults"]["properties"]),
        ("steps", step),
        ("sources", &step["sources"]["items"]["properties"]),
        ("cache", &step["cache"]["properties"]),
        ("resources", &step["resources"]["properties"]),
        ("concurrency", &step["concurrency"]["properties"]),
    ];
    let keys = |schema: &serde_json::Value| schema.as_object().expect("an object").keys().cloned().collect();
    places.into_iter().map(|(place, schema)| (place.to_owned(), keys(schema))).collect()
}

#[test]
fn the_document_names_every_key_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pipeline.md");
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut place = None;
    for line in fs::read_to_string(path).unwrap().lines() {
        if line.starts_with('#') {
            place = line.split_once("keys of `").and_then(|(_, rest)| rest.strip_suffix('`')).map(str::to_owned);
        } else if let (Some(place), Some(row)) = (&place, line.strip_prefix("| `")) {
            documented.entry(place.clone()).or_default().insert(row.split('`').next().unwrap().to_owned());
        }
    }
    assert_eq!(documented, schema_keys());
}

#[test]
fn every_example_of_the_document_is_a_pipeline() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pipeline.md");
    let text = fs::read_to_string(path).unwrap();
    let examples: Vec<_> = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        plan(example);
    }
}

#[test]
fn the_schema_is_closed_and_says_what_each_key_is() {
    fn walk(path: &str, schema: &serde_json::Value) {
        assert!(schema.get("$ref").is_none(), "{path}: everything stands in place");
        assert!(!schema.to_string().contains("\"null\""), "{path}: no key may be without a value");
        if let Some(properties) = schema["properties"].as_object() {
            assert_eq!(schema["additionalProperties"], false, "{path} takes any key");
            for (key, schema) in properties {
                let path = format!("{path}.{key}");
                assert!(schema["description"].is_string(), "{path} has no description");
                walk(&path, schema);
            }
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"]);
        }
    }
    walk("", &pipeline::json_schema());
}

/// A pipeline of which the counts are known: step n may go on from or wait for earlier ones.
fn generated() -> impl Strategy<Value = (String, usize)> {
    let step = (prop::collection::vec(1_usize..4, 0..3), any::<prop::sample::Index>(), 0..3_u8);
    prop::collection::vec(step, 1..12).prop_map(|steps| {
        let mut text = "name: p\ndefaults: {image: i}\nsteps:\n".to_owned();
        let mut count = 0;
        for (n, (matrix, other, edge)) in steps.iter().enumerate() {
            count += matrix.iter().product::<usize>();
            writeln!(text, "- name: s{n}\n  run: echo {n}").unwrap();
            if !matrix.is_empty() {
                let axes: Vec<_> = matrix
                    .iter()
                    .enumerate()
                    .map(|(k, size)| format!("k{k}: {:?}", (0..*size).collect::<Vec<_>>()))
                    .collect();
                writeln!(text, "  matrix: {{{}}}", axes.join(", ")).unwrap();
            }
            if n > 0 {
                let other = other.index(n);
                match edge {
                    1 => writeln!(text, "  needs: [s{other}]").unwrap(),
                    2 if steps[other].0.is_empty() => writeln!(text, "  from: s{other}").unwrap(),
                    _ => {}
                }
            }
        }
        (text, count)
    })
}

proptest! {
    // A failure prints its seed's input; files beside the sources would be one more thing to keep.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_parsed_is_valid_and_has_every_instance((text, count) in generated()) {
        let pipeline = plan(&text);
        prop_assert_eq!(pipeline.steps.len(), count);
        prop_assert_eq!(pipeline::validate(&pipeline), Ok(()));
        let text = pipeline::to_text(&pipeline);
        prop_assert_eq!(text.lines().count(), count + 3);
    }

    #[test]
    fn no_text_makes_it_panic(text in "[a-z:\\[\\]{}&*!|>#,'\"$ \n\t-]{0,80}") {
        let _ = parse(&text).map_err(|errors| format!("{errors} {errors:#}"));
    }

    #[test]
    fn no_change_of_one_character_makes_it_panic(at in any::<prop::sample::Index>(), to in any::<char>()) {
        let text = include_str!("pipeline/plans/ci.yaml");
        let at = text.floor_char_boundary(at.index(text.len()));
        let end = at + text[at..].chars().next().map_or(0, char::len_utf8);
        let changed = format!("{}{to}{}", &text[..at], &text[end..]);
        match parse(&changed) {
            Ok(pipeline) => prop_assert_eq!(pipeline::validate(&pipeline), Ok(())),
            Err(errors) => {
                let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
                let mut report = String::new();
                prop_assert!(handler.render_report(&mut report, &errors).is_ok());
            }
        }
    }
}

//! Random small chains of steps, in which every step looks at everything that it could see of the one before, then does
//! some of what could be left.

use longshore_tests::Dice;
use longshore_tests::actor::Flavour;
use serde_json::{Map, Value, json};

/// A chain of steps.
#[derive(Debug)]
pub(crate) struct Chain {
    seed: u64,
    pub(crate) flavour: Flavour,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    lines: Vec<String>,
    settings: Map<String, Value>,
}

/// How many things a step does: with four steps a chain deals every card about once.
const ACTS_PER_STEP: usize = 12;

impl Chain {
    /// The chain of that seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let flavour = *dice.pick(&[Flavour::Plain, Flavour::Volume, Flavour::Volume, Flavour::FilledVolume]);
        let mut deck: Vec<fn(&mut Dice) -> String> = Vec::new();
        let count = 3 + dice.below(2);
        let mut steps: Vec<_> = (0..count)
            .map(|n| {
                // One stream: what two of them said is in the order of arrival.
                let mut lines: Vec<_> = ["exec 2>&1", "actor look", "mkdir -p /w /links"].map(str::to_owned).to_vec();
                for _ in 0..ACTS_PER_STEP {
                    if deck.is_empty() {
                        deck.extend(DECK);
                        dice.shuffle(&mut deck);
                    }
                    let act = deck.pop().expect("filled above");
                    lines.push(act(&mut dice));
                }
                // What the last of them was refused is not the step's failure.
                lines.push("true".to_owned());
                Step { lines, settings: settings(n, &mut dice) }
            })
            .collect();
        // Root's, or it could not see everything.
        steps.push(Step { lines: vec!["actor look".to_owned()], settings: Map::new() });
        Self { seed, flavour, steps }
    }

    /// The names of its steps, in order.
    pub(crate) fn steps(&self) -> Vec<String> {
        (0..self.steps.len()).map(|n| format!("s{n}")).collect()
    }

    /// As a pipeline file. `view` is said of every step besides.
    pub(crate) fn pipeline(&self, image: &str, view: &Value) -> String {
        let steps = self.steps.iter().enumerate().map(|(n, step)| {
            let mut settings = step.settings.clone();
            settings.insert("name".to_owned(), format!("s{n}").into());
            // Without -e: what is refused is said, and the step goes on.
            settings.insert("shell".to_owned(), json!(["/bin/sh"]));
            settings.insert("run".to_owned(), step.lines.join("\n").into());
            if n == 0 {
                settings.insert("image".to_owned(), image.into());
            } else {
                settings.insert("from".to_owned(), format!("s{}", n - 1).into());
            }
            settings.extend(view.as_object().expect("keys of a step").clone());
            Value::Object(settings)
        });
        let pipeline = json!({ "name": format!("chain-{}", self.seed), "steps": steps.collect::<Vec<_>>() });
        serde_json::to_string_pretty(&pipeline).expect("JSON")
    }
}

/// A step's own: what the next one must not inherit, and what asks for the container to be changed in place.
fn settings(n: usize, dice: &mut Dice) -> Map<String, Value> {
    let mut settings = Map::new();
    let mut set = |key: &str, value: Value| settings.insert(key.to_owned(), value);
    if dice.percent(30) {
        set("env", json!({ "OF_THE_STEP": format!("{n}"), "PATH": "/usr/bin:/bin:/made" }));
    }
    if dice.percent(30) {
        set("workdir", json!(dice.pick(&["/w", "/tmp", "/made/by/the/engine"])));
    }
    // The first step is root: what it makes in /w belongs to root, and others may look.
    if n > 0 && dice.percent(25) {
        set("user", json!(dice.pick(&["tester", "1000:0", "nobody", "4711"])));
    }
    if dice.percent(40) {
        set("resources", dice.pick(&[json!({"memory": "64MiB"}), json!({"pids": 100}), json!({"cpus": 0.5})]).clone());
    }
    settings
}

/// Paths that everything is done to, so that one thing takes the place of another.
const PATHS: [&str; 13] = [
    "/w/a",
    "/w/b",
    "/w/c",
    "/w/a/x",
    "/w/a/y",
    "/w/b/x",
    "/w/a/x/m",
    "/w/b/x/m",
    "/etc/made",
    "/home/tester/f",
    "/w/ümläut",
    "/w/with space",
    "/tmp/t",
];

/// Of files with two names: they are made, removed and replaced. A change in place of one that an earlier step made is a
/// documented difference, which has its own test.
const LINKS: [&str; 4] = ["/links/h0", "/links/h1", "/links/h2", "/links/h3"];

const MODES: [&str; 8] = ["644", "600", "755", "4755", "2755", "1777", "0", "700"];

/// Long ago, and so far off that a container's clock does not reach them. None before 1970: Docker makes those 1970.
const TIMES: [&str; 5] = ["0", "1", "1000000000", "1234567890", "4102444800"];

fn path(dice: &mut Dice) -> String {
    format!("'{}'", dice.pick(&PATHS))
}

fn link(dice: &mut Dice) -> &'static str {
    dice.pick::<&str>(&LINKS)
}

/// Everything that a step could leave, once or as often as it is interesting.
const DECK: &[fn(&mut Dice) -> String] = &[
    // Files of every kind, each in place of what stood there.
    |dice| format!("actor write {} text-{} {}", path(dice), dice.below(9), dice.pick(&MODES)),
    |dice| format!("actor write {} text-{} {}", path(dice), dice.below(9), dice.pick(&MODES)),
    |dice| {
        let path = path(dice);
        format!("actor rm {path}; actor write {path} anew {}", dice.pick(&MODES))
    },
    |dice| format!("actor append {} more", path(dice)),
    |dice| format!("actor append {} more", path(dice)),
    |dice| format!("actor big {} 300000", path(dice)),
    |dice| format!("actor rm {}", path(dice)),
    |dice| format!("actor rm {}", path(dice)),
    |dice| format!("actor dir {} {}", path(dice), dice.pick(&MODES)),
    |dice| format!("actor dir {} {}", path(dice), dice.pick(&MODES)),
    |dice| format!("actor tree {} in-it", path(dice)),
    |dice| format!("actor tree {} in-it", path(dice)),
    |dice| {
        let path = path(dice);
        format!("actor rm {path}; actor symlink {path} {}", dice.pick(&["/w/b", "nowhere", "../w/a", "/w/c"]))
    },
    |dice| {
        let path = path(dice);
        format!("actor rm {path}; actor fifo {path} {}", dice.pick(&MODES))
    },
    |dice| format!("actor rename {} {}", path(dice), path(dice)),
    |dice| format!("actor rename {} {}", path(dice), path(dice)),
    |dice| format!("actor pair {} {}", link(dice), link(dice)),
    |dice| format!("actor pair {} {}", link(dice), link(dice)),
    |dice| format!("actor rm {}", link(dice)),
    |_| "actor rm /w/names; mkdir /w/names; actor names /w/names".to_owned(),
    // What is said of them.
    |dice| format!("actor chmod {} {}", path(dice), dice.pick(&MODES)),
    |dice| format!("actor chmod {} {}", path(dice), dice.pick(&MODES)),
    |dice| format!("actor chown {} {} {}", path(dice), dice.pick(&["0", "1000", "4711"]), dice.pick(&["0", "1000"])),
    |dice| format!("actor touch {} {} 0", path(dice), dice.pick(&TIMES)),
    |dice| format!("actor touch {} {} 0", path(dice), dice.pick(&TIMES)),
    |dice| format!("actor touch {} {} 987654321", path(dice), dice.pick(&TIMES)),
    |dice| format!("actor capability {}", path(dice)),
    // Sockets are not handed on, nor does it show that they were there.
    |dice| format!("actor socket {}", path(dice)),
    |dice| {
        let path = path(dice);
        format!("actor rm {path}; actor socket {path}")
    },
    |dice| format!("actor socket-in {} {}", path(dice), dice.pick(&TIMES)),
    // What lies outside the container's files.
    |_| "mkdir -p /volume/d; echo v > /volume/d/f; echo v > /volume/of-the-image; chmod 751 /volume".to_owned(),
    |_| "rm -rf /volume/sub; chown 1000:1000 /volume".to_owned(),
    |_| "echo shm > /dev/shm/left; mkdir -p /dev/shm/d; ln -sf / /dev/shm/l; chmod 700 /dev/shm".to_owned(),
    |_| "true > /dev/mqueue/left; chmod 755 /dev/mqueue".to_owned(),
    |_| "echo x > /dev/left; mkdir -p /dev/d; echo x > /dev/d/x; chmod 700 /dev".to_owned(),
    |_| "rm -f /dev/fd /dev/stdin; ln -sf /etc/passwd /dev/stdout".to_owned(),
    |_| "chmod 600 /dev/null /dev/zero; chown 1000 /dev/full".to_owned(),
    |dice| format!("actor sysv {}", dice.pick(&["0", "1000", "4711"])),
    |_| "echo 192.0.2.1 made-up >> /etc/hosts; chmod 600 /etc/hosts; chown 1000 /etc/hosts".to_owned(),
    |_| "echo changed > /etc/hostname; touch -d @0 /etc/hostname".to_owned(),
    |_| "true > /etc/resolv.conf; chmod 666 /etc/resolv.conf".to_owned(),
    // Processes, with all that they hold.
    |_| "actor daemon left".to_owned(),
    |_| "sleep 1000 & true > /w/held && (sleep 1000 >> /w/held &); cd / ; (cd /w && sleep 1000 &)".to_owned(),
    |_| "(exec 7>/w/open; rm -f /w/open; sleep 1000 &)".to_owned(),
    |_| "actor stop-yourself & actor stubborn >/dev/null &".to_owned(),
    // What belongs to a process and not to a container.
    |_| "export LEAKED=yes; umask 077; cd /tmp; ulimit -n 64; exec 8</etc/passwd; trap '' HUP TERM".to_owned(),
    |_| "renice -n 5 $$ >/dev/null".to_owned(),
];

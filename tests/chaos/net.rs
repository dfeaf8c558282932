//! Packets that are dropped between the broker and one process.

use std::path::PathBuf;

use longshore_tests::check::run_command;

use crate::stand::Stand;

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// All.
    Both,
    /// What the process sends.
    ToBroker,
    /// What the broker sends.
    FromBroker,
}

/// Rules that drop packets, until it is dropped itself.
pub(crate) struct Cut {
    net: Option<PathBuf>,
    rules: Vec<Rule>,
}

struct Rule {
    chain: &'static str,
    words: Vec<String>,
}

impl Cut {
    /// Between the broker and the worker beside that Engine, in the Engine's namespace.
    pub(crate) fn worker(stand: &Stand, engine: u8, way: Way) -> Self {
        let place = stand.place(engine).expect("packets are only dropped by `make test-chaos`");
        let port = stand.amqp_port();
        Self::new(Some(place.net), way, ("OUTPUT", &["--dport", &port]), ("INPUT", &["--sport", &port]))
    }

    /// Between the broker and the coordinator, who are both here: the workers come by their cables.
    pub(crate) fn coordinator(stand: &Stand, way: Way) -> Self {
        assert!(stand.place(1).is_some(), "packets are only dropped by `make test-chaos`");
        let port = stand.amqp_port();
        let loopback = ["-i", "lo"];
        let to = [&loopback[..], &["--dport", &port]].concat();
        let from = [&loopback[..], &["--sport", &port]].concat();
        Self::new(None, way, ("INPUT", &to), ("INPUT", &from))
    }

    fn new(net: Option<PathBuf>, way: Way, to: (&'static str, &[&str]), from: (&'static str, &[&str])) -> Self {
        let mut cut = Self { net, rules: Vec::new() };
        let meant = [(to, Way::ToBroker), (from, Way::FromBroker)].into_iter();
        for ((chain, words), _) in meant.filter(|(_, this)| way == Way::Both || way == *this) {
            let words = ["-p", "tcp"].iter().chain(words).chain(&["-j", "DROP"]);
            let rule = Rule { chain, words: words.map(|&word| word.to_owned()).collect() };
            cut.iptables("-I", &rule);
            cut.rules.push(rule);
        }
        cut
    }

    /// How many packets each rule has dropped so far.
    pub(crate) fn dropped(&self) -> Vec<u64> {
        self.rules.iter().map(|rule| self.counter(rule)).collect()
    }

    /// Lets them pass again. How many were dropped.
    pub(crate) fn mend(mut self) -> Vec<u64> {
        let dropped = self.dropped();
        self.remove();
        dropped
    }

    fn remove(&mut self) {
        for rule in std::mem::take(&mut self.rules) {
            self.iptables("-D", &rule);
        }
    }

    /// The line of a rule as iptables lists it begins with its packets; it is told by the rest.
    fn counter(&self, rule: &Rule) -> u64 {
        let list = self.run(&["-w", "-nvxL", rule.chain]);
        let port = rule.words.iter().position(|word| word.ends_with("port")).expect("every rule names a port");
        let side = if rule.words[port] == "--dport" { "dpt" } else { "spt" };
        let mark = format!("{side}:{}", rule.words[port + 1]);
        let line = list.lines().find(|line| line.contains("DROP") && line.contains(&mark));
        let packets = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        packets.unwrap_or_else(|| panic!("the rule is not there any more:\n{list}"))
    }

    fn iptables(&self, verb: &str, rule: &Rule) {
        let words: Vec<&str> =
            ["-w", verb, rule.chain].into_iter().chain(rule.words.iter().map(String::as_str)).collect();
        self.run(&words);
    }

    fn run(&self, words: &[&str]) -> String {
        match &self.net {
            None => run_command("iptables", words),
            Some(net) => {
                let net = format!("--net={}", net.display());
                run_command("nsenter", &[&[net.as_str(), "iptables"], words].concat())
            }
        }
    }
}

impl Drop for Cut {
    /// A row that fails does not cut the next one's cable.
    fn drop(&mut self) {
        self.remove();
    }
}

//! What the fleet has to do while things break: one of each kind of step, and what each must have printed.

use std::fmt::Write as _;

use longshore_coordinator::core::view::StepView;
use longshore_protocol::Outcome;

/// How a step of the load fails on purpose.
const FAILS_WITH: u8 = 7;

/// Lines that the chatty step prints at once; and it does so twice a second.
const BURST: u32 = 100;

/// How many steps follow upon one another in the chain.
const LINKS: u32 = 5;

/// A run that keeps a fleet busy for about so long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Its long step prints ten lines a second.
    pub(crate) secs: u32,
    /// Whether its steps leave files to one another: on a full disk that is the user's failure.
    pub(crate) files: bool,
}

impl Load {
    /// A step that prints numbered lines for all of the time, one that goes on from it, one that prints many at once, a
    /// chain, a fork, and a step that fails twice.
    pub(crate) fn pipeline(self) -> String {
        let (lines, bursts) = (self.secs * 10, self.secs * 2);
        // The chain and the fork are at work for most of the time, the retries for the first half of it.
        let (link, leaf, fails) = (f64::from(self.secs) / 7.0, f64::from(self.secs) / 2.0, f64::from(self.secs) / 6.0);
        let (make, show) = if self.files { ("echo root > /made", "cat /made") } else { ("'true'", "echo root") };
        let mut text = format!(
            r#"
name: load
defaults: {{image: "longshore-test/busybox:latest"}}
steps:
  - name: long
    run: |
      i=0
      while [ $i -lt {lines} ]; do i=$((i + 1)); echo "line $i"; sleep 0.1; done
  - name: after-long
    from: long
    run: echo after
  - name: chatty
    run: |
      i=0
      while [ $i -lt {bursts} ]; do
        seq $((i * {BURST} + 1)) $((i * {BURST} + {BURST})) | sed 's/^/line /'
        i=$((i + 1))
        sleep 0.5
      done
  - name: root
    run: {make}
  - name: leaf
    from: root
    matrix: {{n: [1, 2, 3]}}
    run: |
      {show}
      sleep {leaf:.1}
  - name: fails-twice
    retry: {{max: 2, on: [{FAILS_WITH}]}}
    run: |
      echo tried
      sleep {fails:.1}
      test "$LONGSHORE_ATTEMPT" -ge 3 || exit {FAILS_WITH}
"#
        );
        for n in 1..=LINKS {
            let from = if n == 1 { String::new() } else { format!("    from: link-{}\n", n - 1) };
            let tell = if self.files { format!("echo {n} >> /trail; cat /trail") } else { format!("seq {n}") };
            let _ = write!(text, "  - name: link-{n}\n{from}    run: |\n      {tell}\n      sleep {link:.1}\n");
        }
        text
    }

    /// What the attempt that passed must have printed, to the byte.
    pub(crate) fn printed(self, step: &str) -> String {
        let numbered = |last: u32| (1..=last).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat();
        match step {
            "long" => numbered(self.secs * 10),
            "chatty" => numbered(self.secs * 2 * BURST),
            "after-long" => "after\n".to_owned(),
            "root" => String::new(),
            "fails-twice" => "tried\n".to_owned(),
            leaf if leaf.starts_with("leaf") => "root\n".to_owned(),
            link => {
                let last: u32 = link.trim_start_matches("link-").parse().expect("every step is one of these");
                (1..=last).map(|n| format!("{n}\n")).collect::<Vec<_>>().concat()
            }
        }
    }
}

/// The attempts of a step that were claimed and then carried out again, by nobody's wish, and what is known of each.
pub(crate) fn carried_out_again(step: &StepView) -> Vec<String> {
    let is_wished = |outcome: &Outcome| *outcome == Outcome::Failed { exit: FAILS_WITH } || *outcome == Outcome::Passed;
    let lost = step
        .attempts
        .iter()
        .filter(|attempt| attempt.worker.is_some() && !attempt.outcome.as_ref().is_some_and(is_wished));
    let lost = lost.map(|attempt| format!("{} {attempt:?}", step.step));
    lost.chain(step.remakes.iter().map(|remake| format!("{} {remake:?}", step.step))).collect()
}

/// How many of the lines that had to be there are not.
pub(crate) fn lines_lost(wanted: &str, got: &str) -> usize {
    let got: std::collections::HashSet<&str> = got.lines().collect();
    wanted.lines().filter(|line| !got.contains(line)).count()
}

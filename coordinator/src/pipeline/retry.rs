//! When a command that failed is tried again: the user's rule.

use std::fmt;

use longshore_protocol::Outcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::duration_text;

/// The user's rule for trying a step again. It sees the command's own failures, never the fleet's (promise 5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Written")]
pub struct Retry {
    /// Extra tries; 0: none.
    pub max: u32,
    /// After which failures. Empty: after every one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<RetryOn>,
    /// How long the first retry waits, ms; each further one waits twice as long, an hour at most, ±25 %. 0: none waits.
    #[serde(skip_serializing_if = "at_once")]
    pub backoff_ms: u64,
}

/// A failure of a command that is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// Any exit status but 0.
    Failed,
    /// This exit status.
    Exit(u8),
    /// A signal that was not ours.
    Signaled,
    /// It ran past its timeout.
    TimedOut,
    /// It was out of memory.
    OomKilled,
}

/// As it stands in plans: a bare number before there were rules.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    /// Extra tries after every failure.
    Times(u32),
    /// A rule.
    Rule {
        max: u32,
        #[serde(default)]
        on: Vec<RetryOn>,
        #[serde(default)]
        backoff_ms: u64,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn at_once(backoff_ms: &u64) -> bool {
    *backoff_ms == 0
}

impl From<Written> for Retry {
    fn from(written: Written) -> Self {
        match written {
            Written::Times(max) => Self::times(max),
            Written::Rule { max, on, backoff_ms } => Self { max, on, backoff_ms },
        }
    }
}

impl Retry {
    /// So many extra tries, after every failure, at once.
    pub fn times(max: u32) -> Self {
        Self { max, ..Self::default() }
    }

    /// Whether a step that ended like this is worth another try, however many there were.
    pub fn covers(&self, outcome: &Outcome) -> bool {
        outcome.is_users_failure() && (self.on.is_empty() || self.on.iter().any(|on| on.covers(outcome)))
    }
}

impl RetryOn {
    /// What `on` may name, beside exit statuses: the words by which outcomes are shown.
    pub(super) const WORDS: [(&'static str, Self); 4] = [
        ("failed", Self::Failed),
        ("signaled", Self::Signaled),
        ("timed_out", Self::TimedOut),
        ("oom_killed", Self::OomKilled),
    ];

    /// What an entry of `on` means; what is wrong with it otherwise.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        if let Some((_, on)) = Self::WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*on);
        }
        if let Ok(status @ 1..) = text.parse::<u8>() {
            return Ok(Self::Exit(status));
        }
        let words: Vec<_> = Self::WORDS.iter().map(|(word, _)| format!("`{word}`")).collect();
        Err(format!("`{text}` is no failure of a command: {}, or an exit status from 1 to 255", words.join(", ")))
    }

    fn covers(self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (Self::Failed, Outcome::Failed { .. })
            | (Self::Signaled, Outcome::Signaled { .. })
            | (Self::TimedOut, Outcome::TimedOut)
            | (Self::OomKilled, Outcome::OomKilled) => true,
            (Self::Exit(wanted), Outcome::Failed { exit }) => wanted == *exit,
            _ => false,
        }
    }
}

impl fmt::Display for Retry {
    /// `2`, or `3 on 75 or oom_killed after 10s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.max)?;
        if !self.on.is_empty() {
            let on: Vec<_> = self.on.iter().map(ToString::to_string).collect();
            write!(f, " on {}", on.join(" or "))?;
        }
        if self.backoff_ms > 0 {
            write!(f, " after {}", duration_text(self.backoff_ms))?;
        }
        Ok(())
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "{status}"),
            word => f.write_str(Self::WORDS.iter().find(|(_, on)| on == word).map_or("", |(word, _)| *word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_covers_what_it_names_and_never_the_fleets() {
        let all = [
            Outcome::Failed { exit: 1 },
            Outcome::Failed { exit: 75 },
            Outcome::Signaled { signal: 11 },
            Outcome::TimedOut,
            Outcome::OomKilled,
            Outcome::infra(longshore_protocol::InfraStage::Lease, "lost"),
            Outcome::Passed,
        ];
        let covered = |on: &[RetryOn]| {
            let rule = Retry { max: 1, on: on.to_vec(), backoff_ms: 0 };
            all.iter().map(|outcome| u8::from(rule.covers(outcome)).to_string()).collect::<String>()
        };
        assert_eq!(covered(&[]), "1111100");
        assert_eq!(covered(&[RetryOn::Failed]), "1100000");
        assert_eq!(covered(&[RetryOn::Exit(75), RetryOn::OomKilled]), "0100100");
        assert_eq!(covered(&[RetryOn::Signaled, RetryOn::TimedOut]), "0011000");
    }

    #[test]
    fn plans_from_before_there_were_rules_are_read() {
        assert_eq!(serde_json::from_str::<Retry>("2").unwrap(), Retry::times(2));
        let rule = Retry { max: 3, on: vec![RetryOn::Exit(75), RetryOn::TimedOut], backoff_ms: 10_000 };
        let text = serde_json::to_string(&rule).unwrap();
        assert_eq!(text, r#"{"max":3,"on":[{"exit":75},"timed_out"],"backoff_ms":10000}"#);
        assert_eq!(serde_json::from_str::<Retry>(&text).unwrap(), rule);
        assert_eq!(serde_json::to_string(&Retry::times(2)).unwrap(), r#"{"max":2}"#);
        assert_eq!(rule.to_string(), "3 on 75 or timed_out after 10s");
        assert_eq!(Retry::times(2).to_string(), "2");
    }

    #[test]
    fn what_is_no_failure_is_refused() {
        for bad in ["0", "256", "-1", "passed", "infra", "1.5", "", "Failed"] {
            assert!(RetryOn::read(bad).unwrap_err().contains("`oom_killed`"), "{bad:?}");
        }
        assert_eq!(RetryOn::read("75"), Ok(RetryOn::Exit(75)));
        assert_eq!(RetryOn::read("failed"), Ok(RetryOn::Failed));
    }
}

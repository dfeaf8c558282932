//! The command line.

use crate::rows::Name;

/// Fewer give no median worth the name: with five, two may be disturbed.
pub(crate) const RUNS_MIN: usize = 5;

pub(crate) const USAGE: &str = "\
usage: longshore-bench [--rows NAME,...] [--runs N] [--list]

  --rows NAME,...  only these rows; the page in docs/ is written only when all are run
  --runs N         runs of each row and of its baseline, at least 5 [default: 5]
  --list           names the rows and what they measure";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Options {
    Run { rows: Vec<Name>, runs: usize },
    List,
}

impl Options {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let (mut rows, mut runs) = (Name::ALL.to_vec(), RUNS_MIN);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
            match arg.as_str() {
                "--list" => return Ok(Self::List),
                "--rows" => rows = value()?.split(',').map(Name::parse).collect::<Result<_, _>>()?,
                "--runs" => {
                    let text = value()?;
                    let wanted = text.parse().map_err(|_| format!("{text} is no number"))?;
                    if wanted < RUNS_MIN {
                        return Err(format!("--runs {wanted}: a median of fewer than {RUNS_MIN} runs says little"));
                    }
                    runs = wanted;
                }
                _ => return Err(format!("{arg} is not known")),
            }
        }
        Ok(Self::Run { rows, runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn rows_are_chosen_by_name_and_unknown_words_are_refused() {
        assert_eq!(parse(""), Ok(Options::Run { rows: Name::ALL.to_vec(), runs: 5 }));
        assert_eq!(parse("--rows idle,chain10 --runs 7"), {
            Ok(Options::Run { rows: vec![Name::Idle, Name::Chain10], runs: 7 })
        });
        assert_eq!(parse("--list"), Ok(Options::List));
        for wrong in ["--rows nothing", "--rows", "--runs 4", "--runs many", "idle"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}

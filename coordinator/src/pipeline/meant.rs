//! Which of a run's steps somebody means who types a name.

/// For each name whether it is meant: the very name; else every instance of the matrix step of that name; else, with `*`
/// (any text) and `?` (any character) in it, every name that it fits. Brackets stand for themselves: they are part of
/// an instance's name.
pub fn meant<'a>(wanted: &str, names: impl Iterator<Item = &'a str> + Clone) -> Vec<bool> {
    if names.clone().any(|name| name == wanted) {
        return names.map(|name| name == wanted).collect();
    }
    if !wanted.contains(['*', '?']) {
        let is_instance = |name: &str| name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('['));
        return names.map(is_instance).collect();
    }
    let pattern: Vec<char> = wanted.chars().collect();
    names.map(|name| fits(&pattern, &name.chars().collect::<Vec<_>>())).collect()
}

/// Goes back to the last `*` only, so that it takes the product of both lengths at most.
fn fits(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["build", "test[cc=gcc,o=1]", "test[cc=gcc,o=2]", "test[cc=clang,o=1]", "tester"];

    fn chosen(wanted: &str) -> Vec<&'static str> {
        let meant = meant(wanted, NAMES.into_iter());
        NAMES.into_iter().zip(meant).filter_map(|(name, meant)| meant.then_some(name)).collect()
    }

    #[test]
    fn a_name_means_itself_its_instances_or_what_it_fits() {
        assert_eq!(chosen("build"), ["build"]);
        assert_eq!(chosen("test"), NAMES[1..4]);
        assert_eq!(chosen("test[cc=gcc,o=2]"), [NAMES[2]]);
        assert_eq!(chosen("test[cc=gcc,*"), NAMES[1..3]);
        assert_eq!(chosen("*o=1]"), [NAMES[1], NAMES[3]]);
        assert_eq!(chosen("?est*"), NAMES[1..]);
        assert_eq!(chosen("*"), NAMES);
        assert_eq!(chosen("te?"), [""; 0]);
        assert_eq!(chosen("tes"), [""; 0]);
        assert_eq!(chosen(""), [""; 0]);
    }
}

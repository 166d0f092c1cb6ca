//! Patterns in which `*` stands for any text, as in `pinned_images` and docker's `config.json`.

/// Whether all of `name` matches `pattern`.
pub(super) fn glob_match(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(start) else { return false };
    let mut literals: Vec<&str> = rest.split('*').collect();
    let end = literals.pop().unwrap_or_default();
    // The leftmost match of each literal leaves the most text for those after it, so nothing has to
    // be tried twice and a hostile pattern costs no more than a harmless one.
    for literal in literals {
        let Some(at) = left.find(literal) else { return false };
        left = &left[at + literal.len()..];
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::glob_match;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, name, expected) in [
            ("a.io/x:1", "a.io/x:1", true),
            ("a.io/x:1", "a.io/x:12", false),
            ("a.io/*", "a.io/x/y:1", true),
            ("*pause*", "registry.k8s.io/pause:3.10", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("*", "", true),
        ] {
            assert_eq!(glob_match(pattern, name), expected, "{pattern} {name}");
        }
    }
}

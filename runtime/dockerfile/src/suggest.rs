//! "did you mean": the closest of the names that exist.

/// From here on, a name is a different one.
const FAR: usize = 3;

/// Adds the closest of `names` to a message, if one is close. A name that is there is not what was
/// wrong, and suggests nothing.
pub(crate) fn suggest(message: String, name: &str, names: &[&str]) -> String {
    let near = names.iter().map(|known| (distance(name, known), known)).min();
    match near {
        Some((distance, known)) if (1..FAR).contains(&distance) => {
            format!("{message} (did you mean {known}?)")
        }
        _ => message,
    }
}

/// How many characters have to be added, removed or replaced.
fn distance(a: &str, b: &str) -> usize {
    // Names are short; the difference in length is a part of every distance.
    if a.len().abs_diff(b.len()) > 4 * FAR {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, c) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, d) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(c != *d);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_name_is_suggested() {
        for (name, suggestion) in [
            ("frm", Some("from")),
            ("form", Some("from")),
            ("from", None),
            ("whatever", None),
            ("cpy", Some("copy")),
            ("", None),
        ] {
            let expected = match suggestion {
                Some(name) => format!("x (did you mean {name}?)"),
                None => "x".to_owned(),
            };
            assert_eq!(suggest("x".to_owned(), name, &["run", "from", "copy"]), expected, "{name}");
        }
    }
}

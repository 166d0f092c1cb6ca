//! The names of systemd's units, and where their cgroups are.

use anyhow::{Context, bail};

/// The scope of a container.
pub(super) fn scope(id: &str) -> String {
    format!("berth-{id}.scope")
}

/// The path of a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)).
///
/// # Errors
/// It is not the name of a slice.
pub(super) fn path(slice: &str) -> anyhow::Result<String> {
    let wrong =
        || format!("cgroup parent {slice:?} is not a slice, which the systemd driver needs");
    let name = slice.strip_suffix(".slice").with_context(wrong)?;
    if !name.split('-').all(is_part) {
        bail!(wrong());
    }
    // Every dash ends the name of one more slice on the way.
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    let slices: Vec<String> = ends.map(|end| format!("{}.slice", &name[..end])).collect();
    Ok(slices.join("/"))
}

/// The characters of unit names (systemd.unit(5)), without the dash and without `@`.
fn is_part(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\".contains(&byte);
    !part.is_empty() && part.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_where_systemd_has_them() {
        assert_eq!(path("a.slice").unwrap(), "a.slice");
        assert_eq!(path("a-b_c-d.slice").unwrap(), "a.slice/a-b_c.slice/a-b_c-d.slice");
        for wrong in ["a", "-.slice", ".slice", "a--b.slice", "a-.slice", "a b.slice", "a/b.slice"]
        {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }
}

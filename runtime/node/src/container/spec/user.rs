//! Which user and groups a container's process has, by the request or else by the image.

use berth_base::error::{Error, Result};
use berth_shim::spec::{Identity, User};

use crate::container::config::Security;

/// The request's user, else the image's (`user[:group]`), else root. Names are resolved by the
/// shim, which alone sees the container's /etc/passwd.
///
/// # Errors
/// `InvalidArgument` for a group without a user, for both a user and a username, and for numbers
/// out of range.
pub(super) fn user(security: &Security, of_image: &str) -> Result<User> {
    let of_image = security.user.as_deref().unwrap_or(of_image);
    let (from_image, group_of_image) = match of_image.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (of_image, None),
    };
    let named = !security.run_as_username.is_empty();
    let (user, group_of_image) = match (security.run_as_user, named) {
        (Some(_), true) => {
            return Err(Error::invalid("run_as_user and run_as_username exclude each other"));
        }
        // A user of the request drops the image's group as well, which belongs to the image's user.
        (Some(uid), false) => (Identity::Id(id(uid)?), None),
        (None, true) => (identity(&security.run_as_username)?, None),
        (None, false) if security.run_as_group.is_some() => {
            return Err(Error::invalid("run_as_group needs run_as_user or run_as_username"));
        }
        (None, false) if from_image.is_empty() => (Identity::Id(0), group_of_image),
        (None, false) => (identity(from_image)?, group_of_image),
    };
    let group = match (security.run_as_group, group_of_image) {
        (Some(gid), _) => Some(Identity::Id(id(gid)?)),
        (None, Some(group)) => Some(identity(group)?),
        (None, None) => None,
    };
    let supplementary =
        security.supplemental_groups.iter().map(|gid| id(*gid)).collect::<Result<_>>()?;
    Ok(User {
        user,
        group,
        supplementary,
        merge_groups: !security.strict_groups,
        group_names: security.group_names.clone(),
    })
}

/// The user of an exec, from `user[:group]`.
///
/// # Errors
/// `InvalidArgument` for numbers out of range.
pub fn parse(text: &str) -> Result<User> {
    user(&Security::default(), text)
}

fn id(number: i64) -> Result<u32> {
    // The kubelet's own range. The largest 32-bit number is -1 to setuid(2) and its like, which
    // means "do not change", so that the process would stay root.
    let in_range = u32::try_from(number).ok().filter(|id| i32::try_from(*id).is_ok());
    in_range.ok_or_else(|| {
        Error::invalid(format!("user or group {number} is out of range (0 to {})", i32::MAX))
    })
}

/// A number or a name. A text of digits alone is never a name, even where the number is out of
/// range: an image with such a user would otherwise run as root (CVE-2024-40635).
pub(super) fn identity(text: &str) -> Result<Identity> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text
            .parse()
            .map_err(|_| Error::invalid(format!("user or group {text} is out of range")))?;
        return Ok(Identity::Id(id(number)?));
    }
    Ok(Identity::Name(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_of_the_request_then_of_the_image() {
        let name = |text: &str| Identity::Name(text.into());
        for (image, expected) in [
            ("", (Identity::Id(0), None)),
            ("1000", (Identity::Id(1000), None)),
            ("1000:50", (Identity::Id(1000), Some(Identity::Id(50)))),
            ("www:", (name("www"), None)),
            ("www:adm", (name("www"), Some(name("adm")))),
        ] {
            let user = user(&Security::default(), image).unwrap();
            assert_eq!((user.user, user.group), expected, "{image:?}");
        }
        let asked = Security { run_as_user: Some(7), ..Security::default() };
        assert_eq!(user(&asked, "www:adm").unwrap().group, None);
        let (alone, both, negative) = (
            Security { run_as_group: Some(7), ..Security::default() },
            Security { run_as_user: Some(7), run_as_username: "x".into(), ..Security::default() },
            Security { run_as_user: Some(-1), ..Security::default() },
        );
        for security in [alone, both, negative] {
            assert!(user(&security, "").is_err(), "{security:?}");
        }
        assert_eq!(identity("2147483647").unwrap(), Identity::Id(i32::MAX as u32));
        for number in ["2147483648", "4294967295", "4294967296", "99999999999999999999"] {
            assert!(identity(number).unwrap_err().message.contains("out of range"), "{number}");
        }
    }
}

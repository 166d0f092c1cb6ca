//! What `docker rmi` takes away, or why it refuses.
//!
//! A name is taken away, and the image with it if that was the last one. An id stands for the whole
//! image, unless it has names in several repositories. Running containers keep their image whatever
//! is asked for, and so do images that were made of it here; names and stopped containers keep it unless
//! it is forced. Unlike with dockerd it then stays without a name for as long as a container of docker's
//! may be started again.

use std::collections::BTreeSet;

use super::users::User;
use crate::{
    http::error::{Failure, Result},
    image_name::repository,
};

/// What a client has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked<'a> {
    /// The beginning of an id.
    Id,
    Name {
        /// As the client wrote it.
        given: &'a str,
        /// As the store has it.
        stored: &'a str,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The names that are taken away, in the order in which they are told.
    pub untagged: Vec<Untagged>,
    /// Whether the image goes with them.
    pub is_deleted: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Untagged {
    pub name: String,
    /// Whether that is an event. Digests that go with the last tag of their repository are not.
    pub is_event: bool,
}

/// What is known of an image.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// The beginning of its id.
    pub short: &'a str,
    /// Sorted.
    pub names: &'a [String],
    pub users: &'a [User],
    /// Whether other images were made of it here.
    pub has_children: bool,
}

/// Decides on the removal of an image.
///
/// # Errors
/// 409 in dockerd's words.
pub(super) fn plan(image: &Known<'_>, asked: Asked<'_>, force: bool) -> Result<Plan> {
    match asked {
        Asked::Id => by_id(image, force),
        Asked::Name { given, stored } => by_name(image, given, stored, force),
    }
}

fn by_id(image: &Known<'_>, force: bool) -> Result<Plan> {
    let Known { short, names, users, has_children } = *image;
    if has_children {
        return Err(conflict(short, true, "image has dependent child images"));
    }
    check_running(short, users)?;
    if !force && !names.is_empty() && !is_single(names) {
        return Err(conflict(short, false, "image is referenced in multiple repositories"));
    }
    if !force {
        check_stopped(short, users)?;
    }
    if names.is_empty() {
        check_restartable(short, users)?;
    }
    let untagged = names.iter().map(|name| Untagged { name: name.clone(), is_event: true });
    let is_deleted = !users.iter().any(|user| user.is_restartable);
    Ok(Plan { untagged: untagged.collect(), is_deleted })
}

fn by_name(image: &Known<'_>, given: &str, stored: &str, force: bool) -> Result<Plan> {
    let Known { short, names, users, has_children } = *image;
    if !force
        && is_single(names)
        && let Some(user) = users.first()
    {
        return Err(Failure::conflict(format!(
            "conflict: unable to remove repository reference \"{given}\" (must force) - container \
             {} is using its referenced image {short}",
            user.name
        )));
    }
    let mut untagged = vec![Untagged { name: stored.to_owned(), is_event: true }];
    let others: Vec<&String> = names.iter().filter(|name| *name != stored).collect();
    let is_of_repository = |name: &&&String| repository(name) == repository(stored);
    let is_last_tag =
        !is_digest(stored) && others.iter().filter(is_of_repository).all(|name| is_digest(name));
    // Digests alone would keep an image that nobody can see.
    let (gone, left): (Vec<&String>, Vec<&String>) =
        others.into_iter().partition(|name| is_last_tag && repository(name) == repository(stored));
    untagged.extend(gone.into_iter().map(|name| Untagged { name: name.clone(), is_event: false }));
    let is_kept = has_children
        || users.iter().any(|user| user.is_running || user.is_restartable)
        || (!force && !users.is_empty());
    Ok(Plan { untagged, is_deleted: left.is_empty() && !is_kept })
}

/// Whether all names are of one repository, with at most one tag.
fn is_single(names: &[String]) -> bool {
    let tags: Vec<&String> = names.iter().filter(|name| !is_digest(name)).collect();
    let repositories: BTreeSet<&str> = names.iter().map(|name| repository(name)).collect();
    repositories.len() == 1 && tags.len() <= 1
}

fn is_digest(name: &str) -> bool {
    name.contains('@')
}

fn check_running(short: &str, users: &[User]) -> Result<()> {
    match users.iter().find(|user| user.is_running) {
        Some(user) => {
            let why = format!("image is being used by running container {}", user.name);
            Err(conflict(short, true, &why))
        }
        None => Ok(()),
    }
}

fn check_stopped(short: &str, users: &[User]) -> Result<()> {
    match users.first() {
        Some(user) => Err(conflict(short, false, &used_by_stopped(user))),
        None => Ok(()),
    }
}

/// Without the image no container could be started again, so that force takes the names only: where
/// there are none, nothing is left to do.
fn check_restartable(short: &str, users: &[User]) -> Result<()> {
    match users.iter().find(|user| user.is_restartable) {
        Some(user) => Err(conflict(short, true, &used_by_stopped(user))),
        None => Ok(()),
    }
}

fn used_by_stopped(user: &User) -> String {
    format!("image is being used by stopped container {}", user.name)
}

fn conflict(short: &str, is_hard: bool, why: &str) -> Failure {
    let force = if is_hard { "cannot be forced" } else { "must be forced" };
    Failure::conflict(format!("conflict: unable to delete {short} ({force}) - {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, is_running: bool) -> User {
        User { name: name.to_owned(), is_running, is_restartable: name != "pod" }
    }

    /// What is untagged, with `!` before what is no event, and whether the image goes.
    fn planned(asked: Asked<'_>, names: &[&str], users: &[User], force: bool) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let known = Known { short: "abc", names: &names, users, has_children: false };
        match plan(&known, asked, force) {
            Ok(plan) => {
                let name = |untagged: &Untagged| match untagged.is_event {
                    true => untagged.name.clone(),
                    false => format!("!{}", untagged.name),
                };
                let mut words: Vec<String> = plan.untagged.iter().map(name).collect();
                words.extend(plan.is_deleted.then(|| "deleted".to_owned()));
                words.join(" ")
            }
            Err(failure) => {
                assert_eq!(failure.status, 409);
                failure.message
            }
        }
    }

    #[test]
    fn an_id_stands_for_the_whole_image() {
        let (stopped, running) = ([user("s", false)], [user("r", true)]);
        let several = "conflict: unable to delete abc (must be forced) - image is referenced in \
                       multiple repositories";
        let used = "conflict: unable to delete abc (must be forced) - image is being used by \
                    stopped container s";
        let kept = "conflict: unable to delete abc (cannot be forced) - image is being used by \
                    stopped container s";
        let runs = "conflict: unable to delete abc (cannot be forced) - image is being used by \
                    running container r";
        for (names, users, force, expected) in [
            (&["h/a:1"][..], &[][..], false, "h/a:1 deleted"),
            (&["h/a:1", "h/a@sha256:0"], &[], false, "h/a:1 h/a@sha256:0 deleted"),
            (&[], &[], false, "deleted"),
            (&["h/a:1", "h/a:2"], &[], false, several),
            (&["h/a:1", "h/b@sha256:0"], &[], false, several),
            (&["h/a:1", "h/a:2"], &stopped, true, "h/a:1 h/a:2"),
            (&["h/a:1", "h/a:2"], &[user("pod", false)], true, "h/a:1 h/a:2 deleted"),
            (&[], &stopped, true, kept),
            (&["h/a:1"], &stopped, false, used),
            (&[], &stopped, false, used),
            (&["h/a:1", "h/a:2"], &running, false, runs),
            (&["h/a:1"], &running, true, runs),
        ] {
            assert_eq!(planned(Asked::Id, names, users, force), expected, "{names:?} {force}");
        }
    }

    #[test]
    fn an_image_of_which_others_were_made_loses_no_more_than_its_name() {
        let names = ["h/a:1".to_owned()];
        let known = Known { short: "abc", names: &names, users: &[], has_children: true };
        let asked = Asked::Name { given: "a:1", stored: "h/a:1" };
        assert!(!plan(&known, asked, true).unwrap().is_deleted);
        let message = "conflict: unable to delete abc (cannot be forced) - image has dependent child \
                       images";
        assert_eq!(plan(&known, Asked::Id, true).unwrap_err().message, message);
    }

    #[test]
    fn a_name_is_taken_away_with_the_digests_of_its_repository() {
        let asked = Asked::Name { given: "a:1", stored: "h/a:1" };
        let stopped = [user("s", false)];
        let must = "conflict: unable to remove repository reference \"a:1\" (must force) - \
                    container s is using its referenced image abc";
        for (names, users, force, expected) in [
            (&["h/a:1"][..], &[][..], false, "h/a:1 deleted"),
            (&["h/a:1", "h/a@sha256:0"], &[], false, "h/a:1 !h/a@sha256:0 deleted"),
            (&["h/a:1", "h/a:2", "h/a@sha256:0"], &[], false, "h/a:1"),
            (&["h/a:1", "h/b@sha256:0"], &[], false, "h/a:1"),
            (&["h/a:1"], &stopped, false, must),
            (&["h/a:1"], &stopped, true, "h/a:1"),
            (&["h/a:1"], &[user("pod", false)], true, "h/a:1 deleted"),
            (&["h/a:1", "h/b:1"], &stopped, false, "h/a:1"),
            (&["h/a:1"], &[user("r", true)], true, "h/a:1"),
        ] {
            assert_eq!(planned(asked, names, users, force), expected, "{names:?} {force}");
        }
        let digest = Asked::Name { given: "a@sha256:0", stored: "h/a@sha256:0" };
        assert_eq!(planned(digest, &["h/a:1", "h/a@sha256:0"], &[], false), "h/a@sha256:0");
    }
}

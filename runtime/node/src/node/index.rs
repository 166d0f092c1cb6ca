//! Finds objects by id, by a prefix of it, and by name.
//!
//! The lock is held only while a map is read or changed, so that no list ever waits for a disk.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_base::error::{Error, Kind, Result};

/// Objects of one kind. An object has an id and a name that is unique for as long as it exists.
#[derive(Debug)]
pub struct Index<T> {
    /// What to call an object in errors.
    noun: &'static str,
    maps: Mutex<Maps<T>>,
}

#[derive(Debug)]
struct Maps<T> {
    by_id: BTreeMap<String, Arc<T>>,
    id_by_name: HashMap<String, String>,
}

impl<T> Index<T> {
    pub fn new(noun: &'static str) -> Self {
        Self { noun, maps: Mutex::new(Maps { by_id: BTreeMap::new(), id_by_name: HashMap::new() }) }
    }

    fn maps(&self) -> MutexGuard<'_, Maps<T>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that no object has this name.
    ///
    /// # Errors
    /// `AlreadyExists`, with the id of the object that has it.
    pub fn check_free(&self, name: &str) -> Result<()> {
        match self.maps().id_by_name.get(name) {
            Some(id) => Err(Error::new(
                Kind::AlreadyExists,
                format!("{} {name} already exists, with id {id}", self.noun),
            )),
            None => Ok(()),
        }
    }

    /// As `check_free`, for an id.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub fn check_id_free(&self, id: &str) -> Result<()> {
        match self.maps().by_id.contains_key(id) {
            true => {
                let what = format!("{} {id} already exists", self.noun);
                Err(Error::new(Kind::AlreadyExists, what))
            }
            false => Ok(()),
        }
    }

    pub fn insert(&self, id: &str, name: &str, object: Arc<T>) {
        let mut maps = self.maps();
        maps.by_id.insert(id.to_owned(), object);
        maps.id_by_name.insert(name.to_owned(), id.to_owned());
    }

    pub fn remove(&self, id: &str) {
        let mut maps = self.maps();
        maps.by_id.remove(id);
        maps.id_by_name.retain(|_, of| of != id);
    }

    /// Finds an object by its id, or by a prefix that only one id has.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidArgument` for a prefix that several ids have.
    pub fn find(&self, prefix: &str) -> Result<Arc<T>> {
        let maps = self.maps();
        // The map is ordered, so that the ids with this prefix follow each other, and a full id
        // comes before any longer one that begins with it. Two of them are enough to decide.
        let mut matching =
            maps.by_id.range(prefix.to_owned()..).take_while(|(id, _)| id.starts_with(prefix));
        match (matching.next(), matching.next()) {
            // An empty id is a mistake of the caller, and never "the only object that there is".
            (Some((id, object)), other)
                if !prefix.is_empty() && (other.is_none() || id == prefix) =>
            {
                Ok(object.clone())
            }
            (Some(_), Some(_)) if !prefix.is_empty() => {
                Err(Error::invalid(format!("{prefix} is a prefix of several {} ids", self.noun)))
            }
            _ => Err(Error::not_found(format!("no {} {prefix:?}", self.noun))),
        }
    }

    /// All objects, in the order of their ids.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.maps().by_id.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_id_and_unique_prefix() {
        let index = Index::new("thing");
        for id in ["aa11", "aa22", "aa2233"] {
            index.insert(id, &format!("name of {id}"), Arc::new(id));
        }
        for (prefix, found) in [
            ("aa11", Ok("aa11")),
            ("aa1", Ok("aa11")),
            ("aa22", Ok("aa22")),
            ("aa223", Ok("aa2233")),
            ("aa", Err(Kind::InvalidArgument)),
            ("b", Err(Kind::NotFound)),
            ("", Err(Kind::NotFound)),
        ] {
            assert_eq!(
                index.find(prefix).map(|thing| *thing).map_err(|error| error.kind),
                found,
                "{prefix:?}"
            );
        }
        assert_eq!(index.check_free("name of aa11").unwrap_err().kind, Kind::AlreadyExists);
        index.remove("aa11");
        assert!(index.check_free("name of aa11").is_ok());
    }
}

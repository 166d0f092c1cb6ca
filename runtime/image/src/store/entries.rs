//! What the index lists: which name refers to which image, and the images that stay without a name.
//!
//! An image loses its last name when the name is given to another image or is taken away. Kubernetes
//! has no use for it then. docker keeps it, and shows it as `<none>` until it is pruned.

use std::collections::{BTreeMap, HashMap, HashSet};

use oci_spec::image::{Descriptor, ImageIndex};

use crate::{digest::Digest, documents::REF_NAME};

/// The annotation for the id of the image that an image was made of.
const PARENT: &str = "berth.image.parent";
/// The annotation for when somebody gave an image a name.
const TAGGED: &str = "berth.image.tagged";

/// What a name refers to.
#[derive(Clone, Debug)]
pub(super) struct NamedManifest {
    pub manifest: Descriptor,
    pub image: Digest,
}

/// What is known of an image that is not in its documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The image that it was made of here, for as long as that is here as well.
    pub parent: Option<Digest>,
    /// When somebody last gave it a name, in nanoseconds since the epoch.
    pub tagged_at: Option<i64>,
}

impl Origin {
    pub(super) fn of(descriptor: &Descriptor) -> Self {
        let annotation = |key: &str| descriptor.annotations().as_ref()?.get(key);
        Self {
            parent: annotation(PARENT).and_then(|id| Digest::parse(id).ok()),
            tagged_at: annotation(TAGGED).and_then(|time| time.parse().ok()),
        }
    }

    /// Takes what `newer` knows.
    fn learn(&mut self, newer: &Self) {
        self.parent = newer.parent.clone().or(self.parent.take());
        self.tagged_at = newer.tagged_at.or(self.tagged_at);
    }
}

/// What becomes of an image that loses its last name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nameless {
    Kept,
    Dropped,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    /// By `repository:tag` and `repository@digest`.
    pub names: BTreeMap<String, NamedManifest>,
    /// The manifests of the images that stay without a name.
    pub nameless: BTreeMap<Digest, Descriptor>,
    /// Of those images of which something is known.
    pub origins: BTreeMap<Digest, Origin>,
}

impl Entries {
    /// Gives names to an image. `displaced` says what becomes of one whose last name that was. Without
    /// any names, an image that has none stays without one.
    pub(super) fn name(&mut self, names: &[String], named: &NamedManifest, displaced: Nameless) {
        for name in names {
            if let Some(before) = self.names.insert(name.clone(), named.clone()) {
                self.settle(before, displaced);
            }
        }
        match self.is_named(&named.image) {
            true => drop(self.nameless.remove(&named.image)),
            false => drop(self.nameless.insert(named.image.clone(), named.manifest.clone())),
        }
    }

    /// Notes what is known of an image.
    pub(super) fn note(&mut self, image: &Digest, origin: &Origin) {
        if *origin != Origin::default() {
            self.origins.entry(image.clone()).or_default().learn(origin);
        }
    }

    /// Forgets what is known of images that are gone.
    pub(super) fn forget_gone(&mut self) {
        let mut origins = std::mem::take(&mut self.origins);
        let images = self.images();
        origins.retain(|image, _| images.contains(image));
        for origin in origins.values_mut() {
            origin.parent = origin.parent.take().filter(|parent| images.contains(parent));
        }
        self.origins = origins;
    }

    /// Takes those of the names away that refer to `image`, which stays when it has none left.
    pub(super) fn untag(&mut self, names: &[String], image: &Digest) {
        for name in names {
            if self.names.get(name).is_some_and(|named| named.image == *image)
                && let Some(before) = self.names.remove(name)
            {
                self.settle(before, Nameless::Kept);
            }
        }
    }

    pub(super) fn remove(&mut self, image: &Digest) {
        self.names.retain(|_, named| named.image != *image);
        self.nameless.remove(image);
    }

    /// Keeps or drops an image that one of its names does not refer to any more.
    fn settle(&mut self, before: NamedManifest, nameless: Nameless) {
        if nameless == Nameless::Kept && !self.is_named(&before.image) {
            self.nameless.insert(before.image, before.manifest);
        }
    }

    fn is_named(&self, image: &Digest) -> bool {
        self.names.values().any(|named| named.image == *image)
    }

    /// Whatever has an image: its names, and itself without one.
    pub(super) fn images(&self) -> HashSet<&Digest> {
        let named = self.names.values().map(|named| &named.image);
        named.chain(self.nameless.keys()).collect()
    }

    pub(super) fn manifests(&self) -> impl Iterator<Item = (&Digest, &Descriptor)> {
        let named = self.names.values().map(|named| (&named.image, &named.manifest));
        named.chain(&self.nameless)
    }

    /// The document. A descriptor without a name is that of an image without one.
    pub(super) fn index(&self) -> ImageIndex {
        let named = self.names.iter().map(|(name, named)| {
            self.descriptor(&named.image, &named.manifest, Some((REF_NAME, name.clone())))
        });
        let nameless =
            self.nameless.iter().map(|(image, manifest)| self.descriptor(image, manifest, None));
        let mut index = ImageIndex::default();
        index.set_schema_version(2);
        index.set_manifests(named.chain(nameless).collect());
        index
    }

    fn descriptor(
        &self,
        image: &Digest,
        manifest: &Descriptor,
        name: Option<(&str, String)>,
    ) -> Descriptor {
        let origin = self.origins.get(image);
        let parent = origin.and_then(|origin| Some((PARENT, origin.parent.as_ref()?.to_string())));
        let tagged = origin.and_then(|origin| Some((TAGGED, origin.tagged_at?.to_string())));
        let annotations: HashMap<String, String> = [name, parent, tagged]
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let mut descriptor = manifest.clone();
        descriptor.set_annotations(Some(annotations).filter(|all| !all.is_empty()));
        descriptor
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;

    fn image(text: &str) -> NamedManifest {
        let image = Digest::sha256(text);
        let digest = image.to_string().parse::<oci_spec::image::Digest>().unwrap();
        NamedManifest { manifest: Descriptor::new(MediaType::ImageManifest, 1, digest), image }
    }

    fn names(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn an_image_that_loses_its_last_name_is_kept_or_dropped() {
        let (old, new) = (image("old"), image("new"));
        for (displaced, nameless) in [(Nameless::Kept, 1), (Nameless::Dropped, 0)] {
            let mut entries = Entries::default();
            entries.name(&names(&["a:1", "a:2"]), &old, displaced);
            entries.name(&names(&["a:1"]), &new, displaced);
            assert_eq!((entries.names.len(), entries.nameless.len()), (2, 0));
            entries.name(&names(&["a:2"]), &new, displaced);
            assert_eq!((entries.images().len(), entries.nameless.len()), (1 + nameless, nameless));
            entries.name(&names(&["b:1"]), &old, displaced);
            assert_eq!((entries.images().len(), entries.nameless.len()), (2, 0));
        }
    }

    #[test]
    fn what_is_known_of_an_image_is_in_the_index_and_goes_with_it() {
        let (parent, child) = (image("parent"), image("child"));
        let mut entries = Entries::default();
        entries.name(&[], &parent, Nameless::Kept);
        entries.name(&names(&["a:1", "a:2"]), &child, Nameless::Kept);
        let origin = Origin { parent: Some(parent.image.clone()), tagged_at: None };
        entries.note(&child.image, &origin);
        entries.note(&child.image, &Origin { parent: None, tagged_at: Some(7) });
        entries.forget_gone();
        let known = Origin { tagged_at: Some(7), ..origin };
        let index = entries.index();
        let read: Vec<Origin> = index.manifests().iter().map(Origin::of).collect();
        assert_eq!(read, [known.clone(), known, Origin::default()]);
        entries.remove(&parent.image);
        entries.forget_gone();
        assert_eq!(entries.origins[&child.image], Origin { parent: None, tagged_at: Some(7) });
        entries.remove(&child.image);
        entries.forget_gone();
        assert!(entries.origins.is_empty());
    }

    #[test]
    fn names_are_taken_from_their_image_only() {
        let (own, other) = (image("own"), image("other"));
        let mut entries = Entries::default();
        entries.name(&names(&["a:1"]), &own, Nameless::Kept);
        entries.name(&names(&["b:1"]), &other, Nameless::Kept);
        entries.untag(&names(&["a:1", "b:1", "c:1"]), &own.image);
        assert!(entries.names.contains_key("b:1") && !entries.names.contains_key("a:1"));
        assert_eq!(entries.index().manifests().len(), 2);
        entries.remove(&own.image);
        assert_eq!(entries.images(), HashSet::from([&other.image]));
    }
}

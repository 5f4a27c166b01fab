//! Where things lie below the prefix.
//!
//! `claims/` and `namespaces/` sort before `objects/`, and that before `purges/`, so that one listing from a certain
//! object on shows all newer objects and every purge, and nothing else.

use kvstored_core::Namespace;
use object_store::path::Path;

use crate::format::ObjectName;

const CLAIMS: &str = "claims";
const NAMESPACES: &str = "namespaces";
const OBJECTS: &str = "objects";
const PURGES: &str = "purges";

/// What a key below the prefix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object with blocks.
    Object(ObjectName),
    /// A purge of a namespace up to a generation.
    Purge(Namespace, u64),
    /// Something else.
    Other,
}

/// The keys of one prefix.
#[derive(Clone, Debug)]
pub struct Paths {
    root: Path,
}

impl Paths {
    /// Below that prefix.
    pub fn new(prefix: &str) -> Self {
        Self {
            root: Path::from(prefix),
        }
    }

    /// The prefix itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn below(&self, folder: &str, name: &str) -> Path {
        self.root.clone().join(folder).join(name)
    }

    /// An object with blocks.
    pub fn object(&self, name: &ObjectName) -> Path {
        self.below(OBJECTS, &name.to_string())
    }

    /// Sorts before every object from that generation on, and behind `claims/` and `namespaces/`.
    pub fn objects_from(&self, generation: u64) -> Path {
        self.below(OBJECTS, &format!("{generation:016x}"))
    }

    /// The claim of a writer's number.
    pub fn claim(&self, writer: u128) -> Path {
        self.below(CLAIMS, &format!("{writer:032x}"))
    }

    /// All claims.
    pub fn claims(&self) -> Path {
        self.root.clone().join(CLAIMS)
    }

    /// What a namespace's digest stands for.
    pub fn namespace(&self, namespace: &Namespace) -> Path {
        self.below(NAMESPACES, &namespace.to_string())
    }

    /// The mark of a purge.
    pub fn purge(&self, namespace: &Namespace, bound: u64) -> Path {
        self.below(PURGES, &format!("{namespace}-{bound:016x}"))
    }

    /// What a listed key is.
    pub fn kind(&self, path: &Path) -> Kind {
        let Some(mut parts) = path.prefix_match(&self.root) else {
            return Kind::Other;
        };
        let (Some(folder), Some(name), None) = (parts.next(), parts.next(), parts.next()) else {
            return Kind::Other;
        };
        match folder.as_ref() {
            OBJECTS => ObjectName::parse(name.as_ref()).map_or(Kind::Other, Kind::Object),
            PURGES => {
                purge(name.as_ref()).map_or(Kind::Other, |(namespace, bound)| Kind::Purge(namespace, bound))
            }
            _ => Kind::Other,
        }
    }
}

fn purge(name: &str) -> Option<(Namespace, u64)> {
    let (namespace, bound) = name.split_once('-')?;
    if bound.len() != 16 {
        return None;
    }
    Some((
        Namespace::from_hex(namespace).ok()?,
        u64::from_str_radix(bound, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_under_every_prefix() {
        let name = ObjectName {
            generation: 9,
            writer: 8,
            sequence: 7,
        };
        for prefix in ["", "kv", "a/b c/ü"] {
            let paths = Paths::new(prefix);
            assert_eq!(paths.kind(&paths.object(&name)), Kind::Object(name), "{prefix}");
            let mark = paths.purge(&Namespace([3; 32]), 77);
            assert_eq!(paths.kind(&mark), Kind::Purge(Namespace([3; 32]), 77));
            for other in [
                paths.claim(5),
                paths.namespace(&Namespace([1; 32])),
                paths.object(&name).join("x"),
            ] {
                assert_eq!(paths.kind(&other), Kind::Other, "{other}");
            }
            let from = paths.objects_from(9);
            assert!(from < paths.object(&name) && from > paths.objects_from(8));
            assert!(from > paths.namespace(&Namespace([255; 32])) && from > paths.claim(u128::MAX));
            assert!(from < mark);
        }
    }
}

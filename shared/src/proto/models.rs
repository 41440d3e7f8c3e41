//! The blobs that tasks of one version refer to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::ClientId;
use crate::wire::BlobRef;

/// The blobs that tasks of one version refer to: made by a round, together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Models {
    /// The run's adapter.
    pub adapter: BlobRef,
    /// The same adapter cut down to lower ranks, for clients that cannot train its own.
    pub ranked: BTreeMap<u32, BlobRef>,
    /// Clients' own adapters, where nothing is averaged.
    pub own: BTreeMap<ClientId, BlobRef>,
    /// The server's control variate.
    pub variate: Option<BlobRef>,
}

impl Models {
    /// One adapter for everyone.
    pub fn shared(adapter: BlobRef) -> Self {
        Self {
            adapter,
            ranked: BTreeMap::new(),
            own: BTreeMap::new(),
            variate: None,
        }
    }

    /// The adapter that `client` starts from; `rank` is a lower one than the run's, if it has one.
    pub fn start_of(&self, client: ClientId, rank: Option<u32>) -> BlobRef {
        let own = self.own.get(&client);
        let ranked = rank.and_then(|rank| self.ranked.get(&rank));
        *own.or(ranked).unwrap_or(&self.adapter)
    }

    /// Every blob.
    pub fn blobs(&self) -> impl Iterator<Item = BlobRef> + '_ {
        let others = self.ranked.values().chain(self.own.values());
        let all = std::iter::once(&self.adapter).chain(others);
        all.chain(&self.variate).copied()
    }

    /// Whether `client` may have this blob: what is another client's own is
    /// nobody else's.
    pub fn is_open_to(&self, client: ClientId, blob: BlobRef) -> bool {
        let shared = std::iter::once(&self.adapter).chain(self.ranked.values());
        let mut shared = shared.chain(&self.variate);
        self.own.get(&client) == Some(&blob) || shared.any(|open| *open == blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_gets_its_own() {
        let blob = |name: &str| BlobRef::of(name.as_bytes());
        let (alice, bob) = (ClientId([1; 32]), ClientId([2; 32]));
        let mut models = Models::shared(blob("all"));
        models.ranked.insert(4, blob("four"));
        models.own.insert(alice, blob("alice"));
        models.variate = Some(blob("variate"));
        assert_eq!(models.start_of(alice, Some(4)), blob("alice"));
        assert_eq!(models.start_of(bob, Some(4)), blob("four"));
        assert_eq!(models.start_of(bob, None), blob("all"));
        assert_eq!(models.blobs().count(), 4);
        assert!(models.is_open_to(alice, blob("alice")));
        assert!(!models.is_open_to(bob, blob("alice")));
        assert!(models.is_open_to(bob, blob("variate")));
        assert!(!models.is_open_to(bob, blob("other")));
    }
}

//! Compares keys with their hashes, as seldom as can be.

use super::ApiKey;
use super::guesses::{Guesses, TooManyGuesses};
use crate::random;
use crate::sessions::records::{Credential, CredentialId, Proof};
use lru::LruCache;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Instant;
use tokio::sync::Semaphore;
use tracing::{debug, warn};
use zeroize::Zeroizing;

/// Keys that are known to be right without computing their hash again: those that were used last.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 14).unwrap();

/// Whether a key is known to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recalled {
    /// It is, and of this credential: its hash was compared before. Whether the credential is still good has
    /// to be asked.
    Right(CredentialId),
    /// Its hash has to be compared. This is its name.
    Unknown(CredentialId),
}

/// Why a key isn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// It is nobody's.
    #[error("no application has this key")]
    Wrong,
    /// It isn't even looked at.
    #[error(transparent)]
    TooManyGuesses(#[from] TooManyGuesses),
}

/// Tells right keys from wrong ones. To clone it is cheap; all clones are one.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

struct Inner {
    /// Permits to compute a hash: a CPU, and 19 MiB.
    hashing: Semaphore,
    /// Known to this process only, so that nobody can tell what a remembered key would be hashed to.
    process_key: Zeroizing<[u8; 16]>,
    started: Instant,
    memory: Mutex<Memory>,
}

struct Memory {
    /// Keyed hashes of keys that were right. A key is never right for another hash than it was: its name
    /// is random, and not used again.
    right: LruCache<u128, CredentialId>,
    guesses: Guesses,
}

impl Default for Verifier {
    fn default() -> Self {
        let cpus = available_parallelism().map_or(1, NonZeroUsize::get);
        // Not made for that many at once: mostly there are few.
        let mut right = LruCache::unbounded();
        right.resize(REMEMBERED);
        Self(Arc::new(Inner {
            hashing: Semaphore::new(cpus),
            process_key: Zeroizing::new(random::bytes()),
            started: Instant::now(),
            memory: Mutex::new(Memory {
                right,
                guesses: Guesses::none(),
            }),
        }))
    }
}

impl Verifier {
    /// Whether `key`, presented from that address, was right before.
    ///
    /// # Errors
    ///
    /// If it wasn't, and there were too many wrong ones to look at it now. Who has a key that was right
    /// before is not stopped by others that guess.
    pub fn recall(&self, key: &ApiKey, from: IpAddr) -> Result<Recalled, TooManyGuesses> {
        let tag = self.tag(key);
        let mut memory = self.memory();
        if let Some(&id) = memory.right.get(&tag) {
            return Ok(Recalled::Right(id));
        }
        let now = self.0.started.elapsed();
        memory.guesses.may_try(now, key.id(), from)?;
        Ok(Recalled::Unknown(key.id()))
    }

    /// Compares `key`, presented from that address, with the credential of its name, if there is one.
    ///
    /// # Errors
    ///
    /// [`KeyRefusal`].
    pub async fn verify(
        &self,
        key: ApiKey,
        named: Option<Credential>,
        from: IpAddr,
    ) -> Result<CredentialId, KeyRefusal> {
        let (id, hash) = match named {
            Some(Credential {
                id,
                proof: Proof::ApiKey(hash),
                ..
            }) => (id, hash),
            Some(Credential {
                id,
                proof: Proof::ApiKeySha256(digest),
                ..
            }) if digest == key.sha256() => {
                self.memory().right.put(self.tag(&key), id);
                return Ok(id);
            }
            Some(_) | None => {
                self.was_wrong(None, from);
                return Err(KeyRefusal::Wrong);
            }
        };
        let permit = self.0.hashing.acquire().await;
        // While it waited for its turn, others may have guessed, or presented the same key.
        if let Recalled::Right(id) = self.recall(&key, from)? {
            return Ok(id);
        }
        let tag = self.tag(&key);
        let compared = tokio::task::spawn_blocking(move || key.has_hash(&hash)).await;
        drop(permit);
        if compared.unwrap_or(false) {
            self.memory().right.put(tag, id);
            Ok(id)
        } else {
            self.was_wrong(Some(id), from);
            Err(KeyRefusal::Wrong)
        }
    }

    /// Notes a wrong key; `id` is its name if there is a key of that name.
    fn was_wrong(&self, id: Option<CredentialId>, from: IpAddr) {
        let now = self.0.started.elapsed();
        let one_too_many = self.memory().guesses.was_wrong(now, id, from);
        let credential = id.map(tracing::field::display);
        if one_too_many {
            warn!(credential, %from, "wrong keys come so often that the next ones have to wait");
        } else {
            debug!(credential, %from, "a wrong key was presented");
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // What is in it is whole at any moment.
        let memory = self.0.memory.lock();
        memory.unwrap_or_else(PoisonError::into_inner)
    }

    fn tag(&self, key: &ApiKey) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.0.process_key);
        hasher.write(&key.0);
        hasher.finish128().as_u128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::records::UnixTime;
    use std::time::Duration;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    /// The same name as [`right`], another secret.
    fn wrong(n: u8) -> ApiKey {
        let mut bytes = [7; 32];
        bytes[31] = 100 + n;
        ApiKey::from_bytes(bytes)
    }

    fn right() -> ApiKey {
        ApiKey::from_bytes([7; 32])
    }

    /// Of [`right`].
    fn credential() -> Credential {
        Credential {
            proof: Proof::ApiKey(right().hash()),
            ..right().credential(UnixTime::from_millis(0))
        }
    }

    #[tokio::test]
    async fn a_right_key_is_compared_once_and_a_wrong_one_each_time() {
        let verifier = Verifier::default();
        let (id, credential) = (right().id(), credential());
        assert_eq!(verifier.recall(&right(), FROM), Ok(Recalled::Unknown(id)));
        let verified = verifier
            .verify(right(), Some(credential.clone()), FROM)
            .await;
        assert_eq!(verified, Ok(id));
        assert_eq!(verifier.recall(&right(), FROM), Ok(Recalled::Right(id)));
        let refused = verifier.verify(wrong(0), Some(credential), FROM).await;
        assert_eq!(refused, Err(KeyRefusal::Wrong));
        assert_eq!(verifier.recall(&wrong(0), FROM), Ok(Recalled::Unknown(id)));
        let other_process = Verifier::default();
        assert_ne!(other_process.tag(&right()), verifier.tag(&right()));
    }

    #[tokio::test]
    async fn who_guesses_is_slowed_and_stops_nobody_who_was_right() {
        let verifier = Verifier::default();
        let credential = credential();
        let verify = |key| verifier.verify(key, Some(credential.clone()), FROM);
        verify(right()).await.unwrap();
        for n in 0..10 {
            assert_eq!(verify(wrong(n)).await, Err(KeyRefusal::Wrong));
        }
        let Err(TooManyGuesses { retry_after }) = verifier.recall(&wrong(10), FROM) else {
            panic!("the eleventh wrong key was looked at");
        };
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(5));
        assert!(matches!(
            verify(wrong(10)).await,
            Err(KeyRefusal::TooManyGuesses(_))
        ));
        let known = verifier.recall(&right(), FROM);
        assert_eq!(known, Ok(Recalled::Right(right().id())));
    }

    #[tokio::test]
    async fn a_key_of_no_known_name_is_refused_without_a_hash_and_counts_as_a_guess() {
        let verifier = Verifier::default();
        for n in 0..30 {
            let key = ApiKey::from_bytes([n; 32]);
            assert_eq!(
                verifier.verify(key, None, FROM).await,
                Err(KeyRefusal::Wrong)
            );
        }
        assert!(verifier.recall(&right(), FROM).is_err());
        let elsewhere = [192, 0, 2, 2].into();
        assert!(verifier.recall(&right(), elsewhere).is_ok());
    }

    #[tokio::test]
    async fn a_key_that_is_kept_as_its_sha256_is_still_good_by_its_old_name() {
        let verifier = Verifier::default();
        let old = Credential {
            id: right().old_id(),
            ..right().credential(UnixTime::from_millis(0))
        };
        let id = old.id;
        assert_ne!(id, right().id());
        let verified = verifier.verify(right(), Some(old.clone()), FROM).await;
        assert_eq!(verified, Ok(id));
        assert_eq!(verifier.recall(&right(), FROM), Ok(Recalled::Right(id)));
        let refused = verifier.verify(wrong(0), Some(old), FROM).await;
        assert_eq!(refused, Err(KeyRefusal::Wrong));
    }

    #[tokio::test]
    async fn who_comes_with_the_same_new_key_at_once_is_let_in_by_one_comparison() {
        let verifier = Verifier::default();
        let credential = credential();
        let all = (0..200).map(|_| verifier.verify(right(), Some(credential.clone()), FROM));
        let all = futures_util::future::join_all(all);
        let all = tokio::time::timeout(Duration::from_secs(20), all)
            .await
            .unwrap();
        assert!(all.iter().all(|verified| *verified == Ok(right().id())));
    }
}

//! Some reused answers' own vectors, computed in the background, and what they say of the certificate.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Event, Found, Shared, lock};
use crate::cache::Inner;
use crate::cache::flight::{Particulars, Place, Waiter};
use crate::cache::lead::{self, Errand, Input};
use crate::domain::{Key, Lane, Namespace, Tokens};
use crate::index::similarity;

/// An answer to be audited.
pub(in crate::cache) struct Audited {
    pub(in crate::cache) key: Key,
    pub(in crate::cache) tokens: Tokens,
    pub(in crate::cache) found: Found,
    /// What the text's own vector is stored with.
    pub(in crate::cache) particulars: Particulars,
}

/// Has the texts' own vectors computed and stored, behind everybody who waits, and compares them with what was answered.
/// Blocking, and never waits for them.
pub(in crate::cache) fn audit(
    inner: &Arc<Inner>,
    runtime: &tokio::runtime::Handle,
    answers: Vec<Audited>,
    errand: &Errand,
    namespace: &Namespace,
) {
    let shared = &inner.shared;
    let (mut leaders, mut compared) = (Vec::new(), Vec::new());
    for Audited { key, tokens, found, particulars } in answers {
        let waiter = match shared.flights.join(key, Lane::WarmUp, || particulars) {
            Place::Leader(waiter) => {
                leaders.push(lead::leader(&waiter, Input::Read(tokens)));
                waiter
            }
            Place::Follower(waiter, _) => waiter,
        };
        compared.push((key, waiter, found));
    }
    // Holding the waiters is what keeps the calls wanted.
    runtime.spawn(compare(Arc::clone(shared), errand.scope.digest(), namespace.clone(), compared));
    if !leaders.is_empty() {
        lead::lead(inner, leaders, errand);
    }
}

async fn compare(shared: Arc<Shared>, digest: [u8; 32], namespace: Namespace, compared: Vec<(Key, Waiter, Found)>) {
    let reuse = &shared.reuse;
    let field = reuse.field(digest, &namespace);
    for (key, waiter, found) in compared {
        let reused = found.reused;
        let landed = match waiter.outcome().await {
            Ok(landed) => landed,
            Err(failure) => {
                reuse.counts.audits_failed.fetch_add(1, Relaxed);
                tracing::debug!(%key, ?failure, "a reused answer could not be audited");
                continue;
            }
        };
        let own: Vec<f32> = landed.embedding.unit.iter().map(|value| value.to_f32()).collect();
        let cosine = similarity(&own, &found.embedding.unit);
        let violated = cosine < reused.min_similarity;
        reuse.counts.audits.fetch_add(1, Relaxed);
        reuse.counts.violations.fetch_add(u64::from(violated), Relaxed);
        // The text has its own vector now.
        if field.aliases_mut().remove(&key).is_some() {
            reuse.tell(Event::Unaliased { digest, key });
        }
        let Some(audit) = field.audit(reused.certificate) else { continue };
        let (audits, violations, switched_off) = {
            let mut audit = lock(&audit);
            let was_off = audit.is_off();
            audit.observe(cosine);
            (audit.audits(), audit.violations(), !was_off && audit.is_off())
        };
        if switched_off {
            reuse.counts.suspended.fetch_add(1, Relaxed);
            tracing::error!(
                certificate = %reused.certificate,
                namespace = namespace.as_str(),
                min_similarity = reused.min_similarity,
                max_violation = reused.max_violation,
                audits,
                violations,
                "reuse is switched off for this certificate: more reused vectors are below its floor than it allows"
            );
        }
        reuse.tell(Event::Audited { certificate: reused.certificate, audit });
    }
}

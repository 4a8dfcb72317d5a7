//! Which cached text's vector may answer for another text.

use std::sync::Arc;

use super::Terms;
use super::calibrate::{Calibration, compare};
use super::certificate::{Certificate, CertificateId, bin};
use super::changes::Changes;
use super::gate::Gate;
use super::lexicon::Lexicon;
use super::neighbours::{Cheap, Neighbours};
use super::table::Table;
use super::veto::{Veto, veto};
use crate::domain::Key;

/// A calibration at work on the texts that are there now.
pub struct Matcher {
    table: Arc<Table>,
    lexicon: Lexicon,
    calibration: Calibration,
    neighbours: Neighbours,
}

/// A text whose vector will do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match<'a> {
    /// Whose vector.
    pub source: Key,
    /// What says so.
    pub certificate: &'a Certificate,
}

/// Why no text's vector will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The text is too short.
    Short,
    /// Nothing is certified for these terms, for texts of this length.
    Uncertified,
    /// What was certified has been switched off by its audits.
    Suspended,
    /// The nearest text is too different, as far as the gate can tell.
    Distant,
    /// The nearest text differs in something that means much in few words.
    Vetoed(Veto),
}

impl Refusal {
    /// The name used in headers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Uncertified => "uncertified",
            Self::Suspended => "suspended",
            Self::Distant => "distant",
            Self::Vetoed(veto) => veto.as_str(),
        }
    }
}

impl Matcher {
    /// A calibration, and no texts yet; `pieces` is what each of the model's tokens stands for. `None` if the calibration was
    /// made with another table. Certificates whose counts don't carry what they promise are dropped.
    #[must_use]
    pub fn new(table: Arc<Table>, pieces: &[String], mut calibration: Calibration) -> Option<Self> {
        if !calibration.map.fits(&table) {
            return None;
        }
        calibration.certificates.retain(Certificate::is_sound);
        let neighbours = Neighbours::new(calibration.map.dims());
        let lexicon = Lexicon::new(pieces, &calibration.document_counts, calibration.documents);
        Some(Self { table, lexicon, calibration, neighbours })
    }

    /// What it goes by.
    #[must_use]
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// The texts that may be a source.
    #[must_use]
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// Lets a computed text be a source. Short texts are none.
    pub fn add(&self, key: Key, ids: &Arc<[u32]>) {
        if bin(ids.len()).is_none() {
            return;
        }
        let cheap = Cheap::of(&self.table, &self.lexicon, &self.calibration.map, ids);
        if let Some(vector) = cheap.mapped {
            self.neighbours.add(key, Arc::clone(ids), &vector);
        }
    }

    /// Which text's vector will do for a text, asked for on such terms. Certificates that `is_off` are passed over.
    ///
    /// # Errors
    /// Why none will do, and by which certificate that was judged, if by any.
    pub fn find(
        &self,
        ids: &[u32],
        terms: Terms,
        now: u32,
        is_off: &dyn Fn(CertificateId) -> bool,
    ) -> Result<Match<'_>, (Refusal, Option<CertificateId>)> {
        let (certificate, gate) = self.chosen(ids.len(), terms, now, is_off).map_err(|refusal| (refusal, None))?;
        let (lexicon, Calibration { map, vetoes, .. }) = (&self.lexicon, &self.calibration);
        let no = |refusal| Err((refusal, Some(certificate.id)));
        let cheap = Cheap::of(&self.table, lexicon, map, ids);
        let neighbour = cheap.mapped.as_ref().and_then(|vector| self.neighbours.nearest(vector));
        let Some(neighbour) = neighbour else { return no(Refusal::Distant) };
        let changes = Changes::between(ids, &neighbour.ids);
        if let Some(veto) = veto(&changes, lexicon).filter(|_| *vetoes) {
            return no(Refusal::Vetoed(veto));
        }
        let features = compare(&self.table, lexicon, &changes, &cheap.mean, neighbour.cosine);
        if gate.score(&features) < certificate.threshold {
            return no(Refusal::Distant);
        }
        Ok(Match { source: neighbour.key, certificate })
    }

    /// Of the certificates that promise what the terms ask for, the one that promises least: it accepts most.
    fn chosen(
        &self,
        tokens: usize,
        terms: Terms,
        now: u32,
        is_off: &dyn Fn(CertificateId) -> bool,
    ) -> Result<(&Certificate, &Gate), Refusal> {
        if bin(tokens).is_none() {
            return Err(Refusal::Short);
        }
        let serving = self.calibration.certificates.iter().filter(|one| one.serves(tokens, terms, now));
        let on = serving.clone().filter(|one| !is_off(one.id));
        let least = on.min_by(|a, b| {
            a.min_similarity.total_cmp(&b.min_similarity).then(b.max_violation.total_cmp(&a.max_violation))
        });
        let Some(certificate) = least else {
            return Err(if serving.count() > 0 { Refusal::Suspended } else { Refusal::Uncertified });
        };
        let gate = self.calibration.gates.iter().find(|(floor, _)| *floor == certificate.min_similarity);
        gate.map(|(_, gate)| (certificate, gate)).ok_or(Refusal::Uncertified)
    }
}

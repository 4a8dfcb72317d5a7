//! `kill -9` again and again, under load, with an oracle outside the server.
//!
//! Each client owns its texts and remembers of each what the server has said: its vector, or that it is deleted. A request
//! that had no answer when the server died leaves its texts *unsure*, for the server may have done it or not. After each
//! restart: what was answered is a hit with the same vector, what was deleted is not there, and what was unsure is
//! either whole or absent, and stays what it was found to be.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Dice, long};
use crate::support::server::{Client, Server, spawn, vecmemo};

const CLIENTS: u64 = 4;
const SETTINGS: [&str; 4] = ["--data-dir", "data", "--capacity-entries", "1048576"];
/// Texts in one look of the oracle.
const AT_ONCE: usize = 500;
/// Texts of a client that are looked at after each restart beside those of the last rounds.
const SAMPLE: u64 = 1000;

/// What the oracle knows of a text.
#[derive(Clone, Debug)]
enum Known {
    Answered(Value),
    Deleted,
    /// A request was under way. The vector it had before, if one was answered.
    Unsure(Option<Value>),
}

struct Text {
    text: String,
    /// Hexadecimal; empty until the server has said it.
    key: String,
    tag: Option<String>,
    known: Known,
    /// The round in which something last happened to it.
    round: usize,
}

#[derive(Debug, Default)]
struct Counts {
    answered: usize,
    deleted: usize,
    tags_invalidated: usize,
    hits_checked: usize,
    absences_checked: usize,
    unsure_whole: usize,
    unsure_absent: usize,
}

/// One client of the load, and its part of the oracle.
struct Oracle {
    number: u64,
    dice: Dice,
    texts: Vec<Text>,
    tags: usize,
    round: usize,
    counts: Counts,
    /// Routes that the server does not have.
    absent_routes: BTreeSet<&'static str>,
}

/// The server is gone.
struct Gone;

impl From<ureq::Error> for Gone {
    fn from(_: ureq::Error) -> Self {
        Self
    }
}

impl Oracle {
    fn new(number: u64, seed: u64) -> Self {
        Self {
            number,
            dice: Dice(seed),
            texts: Vec::new(),
            tags: 0,
            round: 0,
            counts: Counts::default(),
            absent_routes: BTreeSet::new(),
        }
    }

    /// Works until the server dies under it.
    fn work(&mut self, client: &Client, round: usize) {
        self.round = round;
        while self.step(client).is_ok() {}
    }

    fn step(&mut self, client: &Client) -> Result<(), Gone> {
        match self.dice.below(16) {
            0..9 => self.embed_new(client),
            9..12 => self.ask_known(client),
            12..14 => self.delete_one(client),
            14 => self.invalidate_tag(client),
            _ => self.embed_deleted(client),
        }
    }

    fn embed_new(&mut self, client: &Client) -> Result<(), Gone> {
        let tag = (self.dice.below(3) == 0).then(|| {
            self.tags += 1;
            format!("client-{}-{}", self.number, self.tags)
        });
        let first = self.texts.len();
        for number in first..first + 1 + self.dice.below(16) as usize {
            let text = format!("text {number} of client {}", self.number);
            let (tag, known) = (tag.clone(), Known::Unsure(None));
            self.texts.push(Text { text, key: String::new(), tag, known, round: self.round });
        }
        self.embed(client, (first..self.texts.len()).collect(), tag.as_deref())
    }

    fn embed_deleted(&mut self, client: &Client) -> Result<(), Gone> {
        // Untagged ones, so that what a tag stands for stays simple.
        match self.pick(|text| matches!(text.known, Known::Deleted) && text.tag.is_none()) {
            Some(place) => self.embed(client, vec![place], None),
            None => Ok(()),
        }
    }

    fn embed(&mut self, client: &Client, places: Vec<usize>, tag: Option<&str>) -> Result<(), Gone> {
        let inputs: Vec<&String> = places.iter().map(|&place| &self.texts[place].text).collect();
        let mut body = json!({ "inputs": inputs });
        if let Some(tag) = tag {
            body["tags"] = json!([tag]);
        }
        for &place in &places {
            self.set(place, Known::Unsure(None));
        }
        let (status, answer) = client.post("/embed?details=true", &body)?;
        assert_eq!(status, 200, "{answer}");
        for (place, item) in places.into_iter().zip(answer["items"].as_array().unwrap()) {
            self.texts[place].key = item["key"].as_str().unwrap().to_owned();
            self.set(place, Known::Answered(item["embedding"].clone()));
            self.counts.answered += 1;
        }
        Ok(())
    }

    fn ask_known(&mut self, client: &Client) -> Result<(), Gone> {
        let picks = 1 + self.dice.below(16);
        let places: BTreeSet<usize> =
            (0..picks).filter_map(|_| self.pick(|text| matches!(text.known, Known::Answered(_)))).collect();
        if places.is_empty() { Ok(()) } else { self.check_answered(client, &Vec::from_iter(places)) }
    }

    fn delete_one(&mut self, client: &Client) -> Result<(), Gone> {
        let place = self.pick(|text| matches!(text.known, Known::Answered(_)));
        let Some(place) = place.filter(|_| !self.absent_routes.contains("DELETE /entries")) else { return Ok(()) };
        let before = self.unsure(place);
        let (status, answer) = client.delete(&format!("/entries/{}", self.texts[place].key))?;
        match status {
            405 => {
                self.absent_routes.insert("DELETE /entries");
                self.set(place, before);
                Ok(())
            }
            200 | 204 => {
                self.set(place, Known::Deleted);
                self.counts.deleted += 1;
                self.check_deleted(client, &[place])
            }
            _ => panic!("DELETE of an answered entry: {status} {answer}"),
        }
    }

    fn invalidate_tag(&mut self, client: &Client) -> Result<(), Gone> {
        let place = self.pick(|text| text.tag.is_some() && matches!(text.known, Known::Answered(_)));
        let Some(place) = place.filter(|_| !self.absent_routes.contains("POST /invalidate")) else { return Ok(()) };
        let tag = self.texts[place].tag.clone();
        let places: Vec<usize> = (0..self.texts.len()).filter(|&place| self.texts[place].tag == tag).collect();
        let before: Vec<Known> = places.iter().map(|&place| self.unsure(place)).collect();
        let (status, answer) = client.post("/invalidate", &json!({ "tags": [tag] }))?;
        if status == 404 || status == 405 {
            self.absent_routes.insert("POST /invalidate");
            for (place, known) in places.into_iter().zip(before) {
                self.set(place, known);
            }
            return Ok(());
        }
        assert_eq!(status, 200, "{answer}");
        for &place in &places {
            self.set(place, Known::Deleted);
        }
        self.counts.deleted += places.len();
        self.counts.tags_invalidated += 1;
        self.check_deleted(client, &places)
    }

    /// What is known of a text after a restart, or of all texts: compared, and settled where it was unsure.
    fn check(&mut self, client: &Client, all: bool) {
        let recent = self.round.saturating_sub(1);
        let mut places: BTreeSet<usize> =
            (0..self.texts.len()).filter(|&place| all || self.texts[place].round >= recent).collect();
        if !self.texts.is_empty() {
            places.extend((0..SAMPLE).map(|_| self.dice.below(self.texts.len() as u64) as usize));
        }
        let places = Vec::from_iter(places);
        let of = |texts: &[Text], wanted: fn(&Known) -> bool| -> Vec<usize> {
            places.iter().copied().filter(|&place| wanted(&texts[place].known)).collect()
        };
        let unsure = of(&self.texts, |known| matches!(known, Known::Unsure(_)));
        let answered = of(&self.texts, |known| matches!(known, Known::Answered(_)));
        let deleted = of(&self.texts, |known| matches!(known, Known::Deleted));
        let alive = |result: Result<(), Gone>| assert!(result.is_ok(), "the server is there");
        alive(unsure.chunks(AT_ONCE).try_for_each(|places| self.settle(client, places)));
        alive(answered.chunks(AT_ONCE).try_for_each(|places| self.check_answered(client, places)));
        alive(deleted.chunks(AT_ONCE).try_for_each(|places| self.check_deleted(client, places)));
    }

    fn check_answered(&mut self, client: &Client, places: &[usize]) -> Result<(), Gone> {
        let cached = self.cached(client, places)?;
        let lost: Vec<&String> = places
            .iter()
            .zip(&cached)
            .filter(|(_, cached)| !**cached)
            .map(|(&place, _)| &self.texts[place].text)
            .collect();
        assert!(lost.is_empty(), "{} answered texts are lost: {lost:?}", lost.len());
        for (&place, found) in places.iter().zip(self.hits(client, places)?) {
            let Text { text, known, .. } = &self.texts[place];
            assert!(
                matches!(known, Known::Answered(vector) if *vector == found),
                "wrong vector: {text}: {known:?}, {found}"
            );
        }
        self.counts.hits_checked += places.len();
        Ok(())
    }

    fn check_deleted(&mut self, client: &Client, places: &[usize]) -> Result<(), Gone> {
        let cached = self.cached(client, places)?;
        let back: Vec<&String> = places
            .iter()
            .zip(&cached)
            .filter(|(_, cached)| **cached)
            .map(|(&place, _)| &self.texts[place].text)
            .collect();
        assert!(back.is_empty(), "{} deleted texts are back: {back:?}", back.len());
        self.counts.absences_checked += places.len();
        Ok(())
    }

    /// Finds out what became of texts whose request had no answer.
    fn settle(&mut self, client: &Client, places: &[usize]) -> Result<(), Gone> {
        let cached = self.cached(client, places)?;
        let (whole, absent): (Vec<_>, Vec<_>) = places.iter().copied().zip(cached).partition(|(_, cached)| *cached);
        let whole: Vec<usize> = whole.into_iter().map(|(place, _)| place).collect();
        for (&place, found) in whole.iter().zip(self.hits(client, &whole)?) {
            let Text { text, known, .. } = &self.texts[place];
            if let Known::Unsure(Some(before)) = known {
                assert_eq!(*before, found, "wrong vector: {text}");
            }
            self.texts[place].known = Known::Answered(found);
        }
        for &(place, _) in &absent {
            self.texts[place].known = Known::Deleted;
        }
        self.counts.unsure_whole += whole.len();
        self.counts.unsure_absent += absent.len();
        Ok(())
    }

    /// Which texts the server has, and their keys.
    fn cached(&mut self, client: &Client, places: &[usize]) -> Result<Vec<bool>, Gone> {
        let inputs: Vec<&String> = places.iter().map(|&place| &self.texts[place].text).collect();
        let (status, answer) = client.post("/lookup", &json!({ "inputs": inputs }))?;
        assert_eq!(status, 200, "{answer}");
        let items = answer["items"].as_array().unwrap();
        for (&place, item) in places.iter().zip(items) {
            self.texts[place].key = item["key"].as_str().unwrap().to_owned();
        }
        Ok(items.iter().map(|item| item["cached"] == true).collect())
    }

    /// The cached vectors of texts, computing nothing.
    fn hits(&self, client: &Client, places: &[usize]) -> Result<Vec<Value>, Gone> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let inputs: Vec<&String> = places.iter().map(|&place| &self.texts[place].text).collect();
        let (status, answer) = client.post("/embed", &json!({ "inputs": inputs, "cache": "only" }))?;
        assert_eq!(status, 200, "not cached, though /lookup said so: {answer}");
        Ok(answer.as_array().unwrap().clone())
    }

    /// That cached vectors are those of their texts: the model is asked again.
    fn check_against_the_model(&mut self, client: &Client) -> usize {
        let places: BTreeSet<usize> =
            (0..SAMPLE).filter_map(|_| self.pick(|text| matches!(text.known, Known::Answered(_)))).collect();
        let places = Vec::from_iter(places);
        for places in places.chunks(AT_ONCE) {
            let inputs: Vec<&String> = places.iter().map(|&place| &self.texts[place].text).collect();
            let (status, computed) = client.post("/embed", &json!({ "inputs": inputs, "cache": "bypass" })).unwrap();
            assert_eq!(status, 200, "{computed}");
            for (&place, computed) in places.iter().zip(computed.as_array().unwrap()) {
                let Text { text, known: Known::Answered(vector), .. } = &self.texts[place] else { unreachable!() };
                let pairs = vector.as_array().unwrap().iter().zip(computed.as_array().unwrap());
                let difference =
                    pairs.map(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs()).fold(0.0, f64::max);
                // Computed in another batch: the last bits of f32 may fall on the other side of a step of f16.
                assert!(difference <= 1e-3, "wrong vector: {text}");
            }
        }
        places.len()
    }

    fn set(&mut self, place: usize, known: Known) {
        self.texts[place].known = known;
        self.texts[place].round = self.round;
    }

    /// Takes a text for unsure; answers what was known.
    fn unsure(&mut self, place: usize) -> Known {
        let known = self.texts[place].known.clone();
        let vector = match &known {
            Known::Answered(vector) => Some(vector.clone()),
            Known::Unsure(vector) => vector.clone(),
            Known::Deleted => return known,
        };
        self.set(place, Known::Unsure(vector));
        known
    }

    /// A text of a kind, if a few tries find one.
    fn pick(&mut self, wanted: impl Fn(&Text) -> bool) -> Option<usize> {
        let count = self.texts.len() as u64;
        (0..if count == 0 { 0 } else { 32 })
            .map(|_| self.dice.below(count) as usize)
            .find(|&place| wanted(&self.texts[place]))
    }
}

#[test]
fn what_was_answered_stays_and_what_was_deleted_stays_away_however_often_the_server_is_killed() {
    let kills = if long() { 220 } else { 10 };
    let folder = tempfile::tempdir().unwrap();
    let mut dice = Dice::seeded();
    let mut oracles: Vec<Oracle> = (0..CLIENTS).map(|number| Oracle::new(number, dice.next())).collect();
    let (mut startups_killed, mut quarantined) = (0, 0.0);
    for round in 1..=kills {
        if round % 4 == 0 {
            // Killed while it starts, too.
            let (mut child, lines) = spawn(vecmemo(folder.path()), &SETTINGS);
            std::thread::sleep(Duration::from_millis(dice.below(150)));
            child.kill().unwrap();
            child.wait().unwrap();
            lines.map_while(Result::ok).for_each(drop);
            startups_killed += 1;
        }
        let mut server = Server::with(vecmemo(folder.path()), &SETTINGS);
        let clients: Vec<Client> = oracles.iter().map(|_| server.client()).collect();
        std::thread::scope(|scope| {
            for (oracle, client) in oracles.iter_mut().zip(&clients) {
                scope.spawn(|| oracle.check(client, false));
            }
        });
        quarantined += server.metric("vecmemo_store_quarantined_total");
        std::thread::scope(|scope| {
            for (oracle, client) in oracles.iter_mut().zip(&clients) {
                scope.spawn(move || oracle.work(client, round));
            }
            // The moment is the dice's, not a wait for something.
            std::thread::sleep(Duration::from_millis(30 + dice.below(500)));
            server.kill();
        });
    }
    let server = Server::with(vecmemo(folder.path()), &SETTINGS);
    let mut recomputed = 0;
    for oracle in &mut oracles {
        oracle.check(&server.client(), true);
        recomputed += oracle.check_against_the_model(&server.client());
    }
    let sum = |count: fn(&Counts) -> usize| oracles.iter().map(|oracle| count(&oracle.counts)).sum::<usize>();
    println!(
        "{kills} kills under load and {startups_killed} at start: {} texts answered, {} deleted ({} tags), \
         {} hits and {} absences checked, {} unsure found whole and {} absent, {recomputed} compared with the model; \
         0 lost, 0 wrong, 0 back; {quarantined} slots quarantined; routes not there: {:?}",
        sum(|counts| counts.answered),
        sum(|counts| counts.deleted),
        sum(|counts| counts.tags_invalidated),
        sum(|counts| counts.hits_checked),
        sum(|counts| counts.absences_checked),
        sum(|counts| counts.unsure_whole),
        sum(|counts| counts.unsure_absent),
        oracles[0].absent_routes,
    );
    assert!(sum(|counts| counts.answered) > 10 * kills, "there was load");
    assert!(sum(|counts| counts.hits_checked) > sum(|counts| counts.answered) / 2, "and it was checked");
}

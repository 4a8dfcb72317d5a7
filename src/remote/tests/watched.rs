//! A master with a replica, and sentinels that put the one in the other's place.

use super::live::{Watched, available};
use super::*;

#[test]
fn when_the_master_dies_its_replica_is_used_and_nothing_invalidated_is_served() {
    if !available() {
        return;
    }
    let mut watched = Watched::start();
    let [a, b] = [0, 1].map(|_| Machine::at(&watched.url(), config()));
    a.put(key(1), &["x"]);
    a.put(key(2), &["y"]);
    assert!(a.tier.publish(&of_tag("x")));
    assert_eq!(b.get(&key(1)), None);
    let survey = a.tier.survey();
    assert_eq!((survey.kind, survey.servers.len()), ("sentinel", 2), "{survey:?}");
    assert_eq!(survey.servers[1].role, "slave");
    until("the replica has all of it", SOON, || watched.servers[1].text(&["DBSIZE"]) == "5");
    watched.servers[0].kill();
    until("it is noticed", SOON, || !a.tier.figures().ready && !b.tier.figures().ready);
    assert!(!a.tier.publish(&of_tag("y")));
    let limit = Duration::from_secs(40);
    until("the replica is used", limit, || {
        assert_eq!((b.get(&key(1)), a.get(&key(2))), (None, None));
        a.tier.figures().ready && b.tier.figures().ready
    });
    until("what was said meanwhile is told", SOON, || b.heard() == [of_tag("x"), of_tag("y")]);
    assert_eq!(b.get(&key(2)), None);
    a.put(key(1), &["x"]);
    assert!(b.get(&key(1)).is_some());
}

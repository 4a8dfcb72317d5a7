//! The lock-free parts of the store, in every order: see `src/models.rs`. Run with `--release`; half a minute.
//!
//! That these tests can fail was seen by breaking the code, one place at a time:
//!
//! | broken | found by |
//! | --- | --- |
//! | `wait` does nothing, lacks its fence, or loads relaxed; `enter` lacks its fence; leaving is relaxed | all five in which a slot is freed under its reader: a write while another reads |
//! | `wait` looks at the first stripe only | four of these |
//! | `wait` turns the phase once | `a_reader_that_came_in_slowly_is_waited_for` |
//! | `insert`, `replace`, `find` or `candidate` relaxed | `who_finds_a_slot_reads_a_whole_row`, `a_replaced_key_is_never_missed`: a read without the write before it |
//! | `replace` as an insertion and a removal, in either order | `a_replaced_key_is_never_missed`; the former is how it once was |
//! | a removal that moves another entry into the gap | `a_key_in_a_full_bucket_is_not_missed_while_others_come_and_go` |
//! | passing keys not counted, or counted out twice | the three of the next bucket |
//!
//! Not found, because nobody could tell the difference while there is one writer: the overflow counts changed or read in
//! relaxed order, or on the other side of the entry's own store; the removal's store and the phase's in relaxed order.

use model_check::models;

#[test]
fn who_finds_a_slot_reads_a_whole_row() {
    models::publish();
}

#[test]
fn nobody_is_left_in_a_slot_when_the_writer_has_waited() {
    models::unpublish();
}

#[test]
fn a_slot_used_again_never_shows_another_keys_row() {
    models::reuse();
}

#[test]
fn two_readers_and_the_writer_share_a_slot_safely() {
    models::two_readers();
}

#[test]
fn two_readers_counted_together_are_two() {
    models::two_readers_of_one_stripe();
}

#[test]
fn a_reader_that_came_in_slowly_is_waited_for() {
    models::two_waits();
}

#[test]
fn a_replaced_key_is_never_missed() {
    models::replace();
}

#[test]
fn a_key_in_a_full_bucket_is_not_missed_while_others_come_and_go() {
    models::full_home();
}

#[test]
fn a_key_in_the_next_bucket_is_not_missed_while_others_are_removed() {
    models::overflow_and_removals();
}

#[test]
fn a_key_in_the_next_bucket_is_not_missed_while_others_are_inserted() {
    models::overflow_and_insertions();
}

#[test]
fn an_inserted_key_is_found_past_a_full_bucket() {
    models::overflow_is_counted_before_the_entry_is_there();
}

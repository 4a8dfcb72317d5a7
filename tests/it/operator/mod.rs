//! What an operator has besides the service: manual pages, completions, the doctor, traces, guides.

mod doctor;
mod guides;
mod manual;
mod package;
mod traces;

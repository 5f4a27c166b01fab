//! What decode engines' ranks ask prefill engines', and what those answer: whatever decodes must encode the same.
#![no_main]

use kvstored_handoff::wire::{Answer, MAX_ITEMS, MAX_LOCATED, Question};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(question) = Question::decode(bytes) {
        if let Question::Grant { items, .. } = &question {
            assert!(items.len() <= MAX_ITEMS);
        }
        assert_eq!(question.encode(), bytes);
    }
    for kind in 1..=6 {
        let Ok(answer) = Answer::decode(bytes, kind) else {
            continue;
        };
        match &answer {
            Answer::Located(runs) => assert!(runs.len() <= MAX_LOCATED),
            Answer::Granted { rights, .. } => assert!(rights.len() <= MAX_ITEMS),
            // whether its numbers fit together
            Answer::Described(page) => drop(page.description.check()),
            _ => {}
        }
        assert_eq!(answer.encode(), bytes);
    }
});

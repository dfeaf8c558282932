//! Cuts the scripts of [`super::shell`] into commands.

use std::collections::VecDeque;

/// One command and what ended it.
pub(super) struct Command {
    pub(super) tokens: Vec<Token>,
    pub(super) end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Plain,
    And,
    Or,
    Background,
}

pub(super) enum Token {
    Word(Vec<Part>),
    /// The path is the next word.
    Redirect {
        from: usize,
        append: bool,
    },
    Duplicate {
        from: usize,
        to: usize,
    },
}

pub(super) enum Part {
    Text(String),
    Variable(String),
}

/// Cuts a script into commands. What is not of the language becomes words, and is not found.
pub(super) fn parse(script: &str) -> Vec<Command> {
    let mut parser = Parser { rest: script.chars().collect(), commands: Vec::new(), tokens: Vec::new(), word: None };
    parser.run();
    parser.commands
}

struct Parser {
    rest: VecDeque<char>,
    commands: Vec<Command>,
    tokens: Vec<Token>,
    word: Option<Vec<Part>>,
}

impl Parser {
    fn run(&mut self) {
        while let Some(c) = self.rest.pop_front() {
            let next = self.rest.front().copied();
            match c {
                '\n' | ';' => self.end_command(End::Plain),
                '&' if next == Some('&') => {
                    self.rest.pop_front();
                    self.end_command(End::And);
                }
                '|' if next == Some('|') => {
                    self.rest.pop_front();
                    self.end_command(End::Or);
                }
                '&' => self.end_command(End::Background),
                ' ' | '\t' => self.end_word(),
                '#' if self.word.is_none() => {
                    while self.rest.front().is_some_and(|c| *c != '\n') {
                        self.rest.pop_front();
                    }
                }
                '>' => self.redirect(0),
                '2' if self.word.is_none() && next == Some('>') => {
                    self.rest.pop_front();
                    self.redirect(1);
                }
                '1' if self.word.is_none() && next == Some('>') => {
                    self.rest.pop_front();
                    self.redirect(0);
                }
                '\'' => {
                    self.text("");
                    while let Some(c) = self.rest.pop_front().filter(|c| *c != '\'') {
                        self.char(c);
                    }
                }
                '"' => {
                    self.text("");
                    while let Some(c) = self.rest.pop_front().filter(|c| *c != '"') {
                        match c {
                            '$' => self.variable(),
                            '\\' if matches!(self.rest.front(), Some('"' | '\\' | '$')) => self.escaped(),
                            c => self.char(c),
                        }
                    }
                }
                '$' => self.variable(),
                '\\' => self.escaped(),
                c => self.char(c),
            }
        }
        self.end_command(End::Plain);
    }

    fn text(&mut self, text: &str) {
        self.word.get_or_insert_default().push(Part::Text(text.to_owned()));
    }

    fn char(&mut self, c: char) {
        self.text(c.encode_utf8(&mut [0; 4]));
    }

    fn escaped(&mut self) {
        match self.rest.pop_front() {
            None | Some('\n') => {}
            Some(c) => self.char(c),
        }
    }

    fn variable(&mut self) {
        let braced = self.rest.front() == Some(&'{');
        if braced {
            self.rest.pop_front();
        }
        let mut name = String::new();
        if self.rest.front() == Some(&'?') {
            self.rest.pop_front();
            name.push('?');
        }
        while name != "?" && self.rest.front().copied().is_some_and(is_name_char) {
            name.extend(self.rest.pop_front());
        }
        if braced && self.rest.front() == Some(&'}') {
            self.rest.pop_front();
        }
        if name.is_empty() {
            self.char('$');
        } else {
            self.word.get_or_insert_default().push(Part::Variable(name));
        }
    }

    fn redirect(&mut self, from: usize) {
        self.end_word();
        match (self.rest.front().copied(), self.rest.get(1).copied()) {
            (Some('&'), Some(to @ ('1' | '2'))) => {
                self.rest.drain(..2);
                self.tokens.push(Token::Duplicate { from, to: usize::from(to == '2') });
            }
            (Some('>'), _) => {
                self.rest.pop_front();
                self.tokens.push(Token::Redirect { from, append: true });
            }
            _ => self.tokens.push(Token::Redirect { from, append: false }),
        }
    }

    fn end_word(&mut self) {
        if let Some(parts) = self.word.take() {
            self.tokens.push(Token::Word(parts));
        }
    }

    fn end_command(&mut self, end: End) {
        self.end_word();
        let tokens = std::mem::take(&mut self.tokens);
        if !tokens.is_empty() {
            self.commands.push(Command { tokens, end });
        }
    }
}

pub(super) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

//! A filter in names and bytes, and what it becomes in a database.

use std::{
    collections::BTreeMap,
    io,
    ops::RangeBounds,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Clause, Filter, ItemSet, Term,
    place::{ParseError, Place},
};
use crate::{error::Error, item::Item, read::Reader, storage::Storage};

/// The byte order mark, in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// Clauses that have to be multiplied out may come to so many.
const CLAUSES_MAX: usize = 4096;
/// And all of a filter to so many, which are no more than its text has where nothing is multiplied.
const ALL_MAX: usize = 1 << 20;
/// And to so many items in all of them, where clauses had to be multiplied out.
const ITEMS_MAX: usize = 1 << 22;

/// A condition on events in names of fields and bytes of values: of no database in particular.
///
/// Read from text by [`parse`](super::parse()), or put together:
///
/// ```
/// use traildb::filter::Expr;
///
/// let users = Expr::one_of("user", ["alice", "bob"]);
/// let wanted = users.and(Expr::is("action", "login").not()).and(Expr::time(1000..));
/// ```
#[derive(Clone, Debug)]
pub struct Expr(pub(super) Node);

#[derive(Clone, Debug)]
pub(super) enum Node {
    Any(Vec<Node>),
    All(Vec<Node>),
    Not(Box<Node>),
    Time { first: u64, last: u64 },
    Leaf(Leaf),
}

/// A field has one of some values.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) field: Box<str>,
    pub(super) values: Values,
    /// Where the text says so, if it came from text.
    pub(super) place: Option<Place>,
}

#[derive(Clone, Debug)]
pub(super) enum Values {
    These(Vec<Vec<u8>>),
    /// Those in a file, which is still to be read.
    File(PathBuf),
}

/// What a file of values holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileValues {
    /// A value on each line; empty lines are passed over, and so is a byte order mark in front of all.
    #[default]
    Lines,
    /// One value, all bytes of the file: what the C library's command takes it for.
    Whole,
}

/// Why a filter cannot be bound to a database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The database has no such field, or a file of values was not loaded.
    #[error(transparent)]
    Text(#[from] ParseError),
    /// The filter has too many alternatives of alternatives to be brought into clauses.
    #[error(
        "the filter is too large: alternatives of parentheses come to more than {CLAUSES_MAX} clauses \
         that all must hold, or {ITEMS_MAX} values, or there are more than {ALL_MAX} clauses in all"
    )]
    TooLarge,
    /// The database could not be read.
    #[error(transparent)]
    Database(#[from] Error),
}

/// What to make of a field that the database does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownFields {
    /// It is an error that shows the place.
    #[default]
    Refuse,
    /// It has no value, not even the empty one: no event matches, and every event the negation. As
    /// in the C library, and what shards with different fields need.
    NoMatch,
}

impl Node {
    pub(super) fn any(mut nodes: Vec<Node>) -> Node {
        if nodes.len() == 1 { nodes.remove(0) } else { Node::Any(nodes) }
    }

    pub(super) fn all(mut nodes: Vec<Node>) -> Node {
        if nodes.len() == 1 { nodes.remove(0) } else { Node::All(nodes) }
    }

    pub(super) fn not(node: Node) -> Node {
        match node {
            Node::Not(inner) => *inner,
            node => Node::Not(Box::new(node)),
        }
    }

    pub(super) fn leaves<'n>(&'n self, found: &mut Vec<&'n Leaf>) {
        match self {
            Node::Any(nodes) | Node::All(nodes) => nodes.iter().for_each(|n| n.leaves(found)),
            Node::Not(node) => node.leaves(found),
            Node::Time { .. } => {}
            Node::Leaf(leaf) => found.push(leaf),
        }
    }

    fn leaves_mut(
        &mut self,
        each: &mut impl FnMut(&mut Leaf) -> Result<(), ParseError>,
    ) -> Result<(), ParseError> {
        match self {
            Node::Any(nodes) | Node::All(nodes) => {
                nodes.iter_mut().try_for_each(|node| node.leaves_mut(each))
            }
            Node::Not(node) => node.leaves_mut(each),
            Node::Time { .. } => Ok(()),
            Node::Leaf(leaf) => each(leaf),
        }
    }
}

impl Leaf {
    fn error(&self, reason: String) -> ParseError {
        let place = self.place.clone().unwrap_or_else(|| {
            // Not from text: the name stands for it.
            Place { text: Arc::from(self.field.as_bytes()), at: 0 }
        });
        ParseError::new(place, reason)
    }

    /// The same, where the text names the file of values.
    fn error_at_file(&self, reason: String) -> ParseError {
        let error = self.error(reason);
        // No field's name has an @, nor has what stands between it and the value.
        let at = self.place.as_ref().and_then(|Place { text, at }| {
            Some(at + text[*at..].iter().position(|&byte| byte == b'@')?)
        });
        match (&self.place, at) {
            (Some(place), Some(at)) => {
                ParseError::new(Place { text: place.text.clone(), at }, error.reason())
            }
            _ => error,
        }
    }
}

impl Expr {
    /// Events whose `field` has this value; the empty one is NULL.
    pub fn is(field: &str, value: impl AsRef<[u8]>) -> Expr {
        Expr::one_of(field, [value])
    }

    /// Events whose `field` has one of these values.
    pub fn one_of<V: AsRef<[u8]>>(field: &str, values: impl IntoIterator<Item = V>) -> Expr {
        let values = values.into_iter().map(|value| value.as_ref().to_vec()).collect();
        Expr(Node::Leaf(Leaf { field: field.into(), values: Values::These(values), place: None }))
    }

    /// Events at these times: `from..until`, `from..`, `..=last`.
    pub fn time(times: impl RangeBounds<u64>) -> Expr {
        match Term::time(times) {
            Term::Time { first, last } => Expr(Node::Time { first, last }),
            Term::Items(_) => unreachable!("a term of times"),
        }
    }

    /// Events that match both.
    #[must_use]
    pub fn and(self, other: Expr) -> Expr {
        let mut nodes = match self.0 {
            Node::All(nodes) => nodes,
            node => vec![node],
        };
        nodes.push(other.0);
        Expr(Node::All(nodes))
    }

    /// Events that match one of both, or both.
    #[must_use]
    pub fn or(self, other: Expr) -> Expr {
        let mut nodes = match self.0 {
            Node::Any(nodes) => nodes,
            node => vec![node],
        };
        nodes.push(other.0);
        Expr(Node::Any(nodes))
    }

    /// Events that do not match.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "`and` and `or` stand beside it")]
    pub fn not(self) -> Expr {
        Expr(Node::not(self.0))
    }

    /// The fields that are asked for, ascending, each once. The time is not among them.
    pub fn fields(&self) -> Vec<&str> {
        let mut leaves = Vec::new();
        self.0.leaves(&mut leaves);
        let mut names: Vec<&str> = leaves.iter().map(|leaf| &*leaf.field).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The files of values (`field=@file`) that are still to be loaded.
    pub fn files(&self) -> Vec<&Path> {
        let mut leaves = Vec::new();
        self.0.leaves(&mut leaves);
        let path = |leaf: &&'_ Leaf| match &leaf.values {
            Values::File(_) => true,
            Values::These(_) => false,
        };
        let files = leaves.into_iter().filter(path).map(|leaf| match &leaf.values {
            Values::File(path) => path.as_path(),
            Values::These(_) => unreachable!("only files were kept"),
        });
        files.collect()
    }

    /// Puts the values in files (`field=@file`) in their place. `read` gives the bytes of a file,
    /// such as `|path| std::fs::read(path)`: it decides which files a filter may name.
    ///
    /// # Errors
    /// What `read` says, at the place in the text that names the file.
    pub fn load_files(
        mut self,
        format: FileValues,
        mut read: impl FnMut(&Path) -> io::Result<Vec<u8>>,
    ) -> Result<Expr, ParseError> {
        self.0.leaves_mut(&mut |leaf| {
            let Values::File(path) = &leaf.values else { return Ok(()) };
            let failed = |error| leaf.error_at_file(format!("{}: {error}", path.display()));
            let bytes = read(path).map_err(failed)?;
            leaf.values = Values::These(match format {
                FileValues::Whole => vec![bytes],
                FileValues::Lines => {
                    let bytes = bytes.strip_prefix(MARK).unwrap_or(&bytes);
                    let lines = bytes.split(|&b| b == b'\n');
                    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
                    lines.filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
                }
            });
            Ok(())
        })?;
        Ok(self)
    }

    /// This condition on the events of `reader`, whose fields it must name.
    ///
    /// A value that no event of the database has matches nothing, and its negation everything. All
    /// values of a field are looked up together.
    ///
    /// # Errors
    /// A field that the database lacks, a file that was not loaded, a filter too large to be
    /// brought into clauses, or the database cannot be read.
    pub fn bind<S: Storage>(&self, reader: &Reader<S>) -> Result<Filter, BindError> {
        self.bind_with(reader, UnknownFields::Refuse)
    }

    /// This condition on the events of several databases, in their order. A field that one lacks has
    /// no value there, not even the empty one; what to make of one that all lack is a choice.
    ///
    /// # Errors
    /// As [`bind`](Expr::bind).
    pub fn bind_each<'r, S: Storage + 'r>(
        &self,
        readers: impl IntoIterator<Item = &'r Reader<S>>,
        unknown: UnknownFields,
    ) -> Result<Vec<Filter>, BindError> {
        let readers: Vec<&Reader<S>> = readers.into_iter().collect();
        if unknown == UnknownFields::Refuse {
            self.check_fields(readers.iter().copied())?;
        }
        let bind = |reader: &&Reader<S>| self.bind_with(reader, UnknownFields::NoMatch);
        readers.iter().map(bind).collect()
    }

    /// Makes sure that each of its fields is one of some of these databases, if there are any.
    ///
    /// # Errors
    /// [`BindError::Text`] at a field that all of them lack, and those of reading names of fields.
    pub fn check_fields<'r, S: Storage + 'r>(
        &self,
        readers: impl IntoIterator<Item = &'r Reader<S>>,
    ) -> Result<(), BindError> {
        let mut unknown = self.fields();
        let mut none = true;
        for reader in readers {
            let fields = reader.fields()?;
            unknown.retain(|name| fields.find(name).is_none());
            none = false;
        }
        match unknown.first() {
            Some(name) if !none => Err(self.no_such_field(name).into()),
            _ => Ok(()),
        }
    }

    /// The error for a field that is not there, at its first place in the text.
    pub(crate) fn no_such_field(&self, name: &str) -> ParseError {
        let mut leaves = Vec::new();
        self.0.leaves(&mut leaves);
        let leaf = leaves.into_iter().find(|leaf| &*leaf.field == name);
        let place = Place { text: Arc::from(name.as_bytes()), at: 0 };
        let reason = format!("the database has no field {name:?}");
        leaf.map(|leaf| leaf.error(reason.clone()))
            .unwrap_or_else(|| ParseError::new(place, reason))
    }

    /// Like [`bind`](Expr::bind), with a choice for fields that the database does not have.
    ///
    /// # Errors
    /// As [`bind`](Expr::bind).
    pub fn bind_with<S: Storage>(
        &self,
        reader: &Reader<S>,
        unknown: UnknownFields,
    ) -> Result<Filter, BindError> {
        let mut leaves = Vec::new();
        self.0.leaves(&mut leaves);
        let fields = reader.fields()?;
        // All values of a field are looked up in one go.
        let mut wanted: BTreeMap<u16, Vec<&[u8]>> = BTreeMap::new();
        let mut places = Vec::new();
        for leaf in &leaves {
            let Values::These(values) = &leaf.values else {
                return Err(leaf.error("the file of values was not loaded".into()).into());
            };
            places.push(match fields.find(&leaf.field) {
                Some(field) if field > 0 => {
                    let list = wanted.entry(field).or_default();
                    list.extend(values.iter().map(Vec::as_slice));
                    Some((field, list.len() - values.len()..list.len()))
                }
                _ if unknown == UnknownFields::NoMatch => None,
                _ => return Err(self.no_such_field(&leaf.field).into()),
            });
        }
        let mut found: BTreeMap<u16, Vec<Option<Item>>> = BTreeMap::new();
        for (field, values) in wanted {
            found.insert(field, reader.items(field, &values)?);
        }
        let sets = places.into_iter().map(|place| match place {
            Some((field, range)) => {
                let items = found[&field][range].iter().copied().flatten().collect();
                ItemSet::new(field, items, false)
            }
            None => ItemSet::new(0, Vec::new(), false),
        });
        let clauses = clauses(&self.0, false, &mut sets.collect::<Vec<_>>().into_iter())?;
        Ok(Filter::new(clauses.into_iter().map(Clause::new)))
    }
}

/// Clauses of terms: all of one of.
type Cnf = Vec<Vec<Term>>;

/// Brings `node`, or its negation, into clauses. `sets` are what its leaves have become, in order.
fn clauses(
    node: &Node,
    negate: bool,
    sets: &mut std::vec::IntoIter<ItemSet>,
) -> Result<Cnf, BindError> {
    match node {
        Node::Not(inner) => clauses(inner, !negate, sets),
        Node::Time { first, last } if !negate => {
            Ok(vec![vec![Term::Time { first: *first, last: *last }]])
        }
        Node::Time { first, last } if first > last => Ok(Vec::new()),
        Node::Time { first, last } => {
            let before = first.checked_sub(1).map(|last| Term::Time { first: 0, last });
            let after = last.checked_add(1).map(|first| Term::Time { first, last: u64::MAX });
            Ok(vec![before.into_iter().chain(after).collect()])
        }
        Node::Leaf(_) => {
            let set = sets.next().expect("a set for each leaf");
            Ok(vec![vec![Term::Items(ItemSet { negated: negate, ..set })]])
        }
        Node::All(nodes) if !negate => conjunction(nodes, negate, sets),
        Node::Any(nodes) if negate => conjunction(nodes, negate, sets),
        Node::All(nodes) | Node::Any(nodes) => disjunction(nodes, negate, sets),
    }
}

fn conjunction(
    nodes: &[Node],
    negate: bool,
    sets: &mut std::vec::IntoIter<ItemSet>,
) -> Result<Cnf, BindError> {
    let mut all = Vec::new();
    for node in nodes {
        all.extend(clauses(node, negate, sets)?);
        if all.len() > ALL_MAX {
            return Err(BindError::TooLarge);
        }
    }
    Ok(all)
}

/// (a & b) | (c & d) is (a | c) & (a | d) & (b | c) & (b | d).
fn disjunction(
    nodes: &[Node],
    negate: bool,
    sets: &mut std::vec::IntoIter<ItemSet>,
) -> Result<Cnf, BindError> {
    // What is a single clause adds terms to every product, so it goes first, all at once.
    let mut common = Vec::new();
    let mut factors = Vec::new();
    for node in nodes {
        let mut cnf = clauses(node, negate, sets)?;
        match cnf.len() {
            0 => return drain(nodes, node, sets),
            1 => common.append(&mut cnf[0]),
            _ => factors.push(cnf),
        }
    }
    let mut product = vec![united(common)];
    for factor in factors {
        if product.len().saturating_mul(factor.len()) > CLAUSES_MAX {
            return Err(BindError::TooLarge);
        }
        let mut next = Vec::with_capacity(product.len() * factor.len());
        let mut items = 0;
        for left in &product {
            for right in &factor {
                let clause = united(left.iter().chain(right).cloned().collect());
                items += clause.iter().map(weight).sum::<usize>();
                if items > ITEMS_MAX {
                    return Err(BindError::TooLarge);
                }
                next.push(clause);
            }
        }
        product = next;
    }
    Ok(product)
}

/// One of the nodes holds always (it is a conjunction of nothing), so all do. The sets of the nodes
/// behind it are passed over, so that those that follow find theirs.
fn drain(
    nodes: &[Node],
    always: &Node,
    sets: &mut std::vec::IntoIter<ItemSet>,
) -> Result<Cnf, BindError> {
    let behind = nodes.iter().skip_while(|node| !std::ptr::eq(*node, always)).skip(1);
    let mut leaves = Vec::new();
    behind.for_each(|node| node.leaves(&mut leaves));
    leaves.iter().for_each(|_| drop(sets.next()));
    Ok(Vec::new())
}

fn weight(term: &Term) -> usize {
    match term {
        Term::Items(set) => set.items.len(),
        Term::Time { .. } => 1,
    }
}

/// The same clause with the items of each field in one set.
fn united(terms: Vec<Term>) -> Vec<Term> {
    let mut sets: BTreeMap<u16, Vec<ItemSet>> = BTreeMap::new();
    let mut others = Vec::new();
    for term in terms {
        match term {
            Term::Items(set) if !set.negated => sets.entry(set.field).or_default().push(set),
            term => others.push(term),
        }
    }
    let united = sets.into_iter().map(|(field, mut sets)| match sets.len() {
        1 => Term::Items(sets.remove(0)),
        _ => {
            let items = sets.iter().flat_map(|set| set.items.iter().copied()).collect();
            Term::Items(ItemSet::new(field, items, false))
        }
    });
    united.chain(others).collect()
}

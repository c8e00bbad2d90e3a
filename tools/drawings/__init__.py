"""The diagrams of docs/how-it-works: a module a picture, over one small canvas."""

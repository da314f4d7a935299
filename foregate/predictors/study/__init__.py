"""The Mixtral study's columns, and what is learned from them: boosted trees and an MLP."""

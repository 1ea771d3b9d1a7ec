"""Methods that practice with rewards which they find by comparing with demonstrations."""

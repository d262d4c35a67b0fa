"""What preparing a data set needs: reading foreign folders safely, and writing files durably."""
